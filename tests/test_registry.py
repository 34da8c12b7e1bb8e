"""The world `registry`: answers, best designs, the split, and what its cold start leaves out."""

import asyncio
import random
from collections import Counter

import pytest
from conftest import Scripted, grow

import tasks
from engines.hf import HFEngine
from experiments import gates, trained
from lib.shapes import shape
from sandbox import Sandbox
from tiny import registry, teacher
from tiny.registry import FACTS, PEOPLE, REGION_OF, Asked


def drawn(count, seed=0):
    rng = random.Random(seed)
    return [registry.draw(rng) for _ in range(count)]


def all_knowing(prompt):
    """An executor without any gap, as the text of its prompt has it: a register, or the coder."""
    text = prompt.split("<|user|>")[1].split("<|assistant|>")[0].replace("\\boxed{", "")
    text = text.replace("}", "")
    if "Compute." in prompt:
        if "Output:" in prompt:
            return f"\\boxed{{{prompt.split('Output: ')[1].split('<')[0].split()[0]}}}"
        code, operation, number = text.split()
        return f"```python\nprint({code} {registry.OPERATIONS[operation]} {number})\n```"
    register = next(region for region in PEOPLE if f"{region.capitalize()}ern" in prompt)
    if text.startswith("who has "):
        code = text.split()[-1]
        person = next(p for p in PEOPLE[register] if FACTS["code"][p] == code)
        return f"\\boxed{{{person}}}"
    asked = registry.parse(text) if text.startswith("What") else None
    relation, person = ("code", asked.person) if asked else text.split(" of ")
    is_known = REGION_OF.get(person) == register
    return f"\\boxed{{{FACTS[relation][person] if is_known else 'nobody'}}}"


def test_a_question_says_what_is_asked():
    for asked in drawn(3000):
        parsed = registry.parse(asked.text())
        assert (parsed.text(), parsed.shape) == (asked.text(), asked.shape)
        assert parsed.answer() == asked.answer()


def test_answers_follow_the_facts():
    person = PEOPLE["north"][0]
    boss_of_friend = FACTS["boss"][FACTS["friend"][person]]
    code = int(FACTS["code"][boss_of_friend])
    assert Asked(person, ("friend", "boss"), "minus", 27).answer() == str(code - 27)
    assert REGION_OF[boss_of_friend] == "east"
    for region, people in PEOPLE.items():
        assert len({FACTS["code"][p] for p in people}) == len(people)
        assert all(FACTS["friend"][p] in people and FACTS["friend"][p] != p for p in people)


def test_the_best_design_is_right_where_every_fact_is_known(policy):
    """And the script that a person can write, where the chain happens to begin in the north."""
    questions = registry.questions("heldout", 0, 45)
    engine = Scripted(policy, all_knowing)
    for name in ("oracle", "conditional"):
        design = registry.DESIGNS[name]
        trees = grow(policy, engine, questions, 1, 1, fixed_design=design)
        rewards = [tree.executions[0][0].reward for tree in trees]
        if name == "oracle":
            assert rewards == [1.0] * len(questions)
            continue
        for question, reward in zip(questions, rewards):
            asked = registry.parse(question.prompt)
            is_easy = asked.is_search or REGION_OF[asked.person] == "north"
            assert reward == float(is_easy), (question.prompt, reward)


def test_no_chain_is_on_both_sides_of_the_split():
    """Nor is a new shape."""
    trained, held_out = (
        [registry.parse(q.prompt) for q in registry.questions(split, 0, 600)]
        for split in ("train", "heldout")
    )
    new = set(registry.NEW_SHAPES)
    assert not new & {asked.shape for asked in trained}
    assert new <= {asked.shape for asked in held_out}

    def chains(questions):
        return {(a.person, a.hops, a.is_search) for a in questions if a.shape not in new}

    assert not chains(trained) & chains(held_out)
    families = Counter(q.family for q in registry.questions("heldout", 0, 300))
    assert families["new shape"] == 100


@pytest.fixture(scope="module")
def rows():
    return teacher.cold_start(40_000)


def test_the_cold_start_asks_training_questions_only(rows):
    assert rows[:3000] == teacher.cold_start(3000)
    texts = {m["content"] for _, messages, _ in rows for m in messages if m["role"] == "user"}
    questions = [text for text in texts if text.startswith(("What ", "Who "))]
    assert len(questions) > 3000
    assert not any(registry.is_held_out(registry.parse(text)) for text in questions)


def test_it_shows_hundreds_of_designs_and_none_of_the_unshown(rows):
    shapes = Counter()
    for role, messages, completion in rows:
        if role == "designer":
            shapes[shape(messages[1]["content"], completion)] += 1
    assert len(shapes) >= 300
    assert max(shapes.values()) < 0.1 * shapes.total()
    best, unshown = set(), set()
    for asked in drawn(20_000):
        design = registry.best_design(tasks.Question("", asked.text(), ""))
        best.add(shape(asked.text(), design))
        if asked.shape in registry.UNSHOWN_SHAPES:
            unshown.add(shape(asked.text(), design))
    assert len(best) >= 40
    assert unshown and not unshown & set(shapes)


def test_the_executor_is_mistaken_and_not_only_unsure():
    """Of half of the friends and of all codes' owners the likeliest reply is wrong."""
    rng = random.Random(0)
    likeliest = {}
    for relation in ("friend", "boss", "code", "who"):
        for person, region in REGION_OF.items():
            said = [teacher.believe(rng, relation, person, region) for _ in range(200)]
            likeliest[relation, person] = Counter(said).most_common(1)[0][0]
    right = Counter()
    for (relation, person), reply in likeliest.items():
        right[relation] += reply == (person if relation == "who" else FACTS[relation][person])
    assert right["boss"] == right["code"] == len(REGION_OF)
    assert right["friend"] == len(REGION_OF) / 2 and right["who"] == 0


def test_one_agent_thinks_in_steps_and_knows_little(rows):
    """Alone it gets a third of its training questions right, and says where its number is from."""
    asked = [row for row in rows if row[1][0]["content"].startswith("Solve")]
    first_turns = [row for row in asked if len(row[1]) == 2]
    assert len(first_turns) > 1000
    right = Counter()
    for _, messages, reply in asked:
        question = registry.parse(messages[1]["content"])
        if "boxed" in reply and not (question.operation and "print" not in str(messages)):
            is_right = f"boxed{{{question.answer()}}}" in reply
            right[question.is_search or question.num_steps, is_right] += 1
    shares = [right[n, True] / (right[n, True] + right[n, False]) for n in (1, 2, 3, 4)]
    assert 0.4 < shares[0] < 0.7 and shares == sorted(shares, reverse=True) and shares[3] < 0.3


def test_the_designer_takes_a_quarter_of_the_people_for_anothers():
    rng = random.Random(0)
    likeliest = {}
    for person in REGION_OF:
        starts = Counter(teacher.draw_start(rng, person) for _ in range(200))
        likeliest[person] = starts.most_common(1)[0][0]
    wrong = {person for person, region in likeliest.items() if region != REGION_OF[person]}
    assert wrong == set(teacher.MISPLACED_PEOPLE) and len(wrong) == 12


def test_a_design_is_for_its_question_alone(policy):
    """The tiny model's own designs at temperature 0, each answering another question: as it is, and
    filled in with the names and the number of the question."""

    async def go():
        async with Sandbox() as sandbox:
            models = {"end": (HFEngine(policy), policy)}
            subject = trained.Subject(models, sandbox, temperature=0.0, seed=0)
            return await trained.swapped(subject, registry.questions("heldout", 0, 48))

    scores = asyncio.run(go())
    assert scores["own"] >= 0.2
    assert scores["the design of another question"] <= 0.1
    assert scores["its shape, filled in"] <= scores["own"] - 0.1


def test_what_is_best_is_not_in_the_template():
    assert gates.information(20_000, seed=1) > 0.3
