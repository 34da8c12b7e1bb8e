"""The world `registry`: answers, best designs, the split, and what its cold start leaves out."""

import random
from collections import Counter

import pytest
from conftest import Scripted, grow

import tasks
from experiments import gates
from lib.shapes import shape
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


def test_what_is_best_is_not_in_the_template():
    assert gates.information(20_000, seed=1) > 0.3
