"""The world `namesakes`: what an agent is asked does not say whom the question means."""

import pytest
import test_registry
from conftest import Scripted, grow

from data_types import Question
from tiny import namesakes, registry, teacher
from tiny.registry import PEOPLE, REGIONS, Asked


def all_knowing(prompt):
    """An executor without any gap: that of `registry`, which knows the people of the register in
    the prompt by their first names."""
    prompt = namesakes.as_in_registry(prompt)
    for region in REGIONS:
        if f"{region.capitalize()}ern" in prompt:
            for person in PEOPLE[region]:
                prompt = prompt.replace(namesakes.FIRST_NAMES[person], person)
    return namesakes.among_registers(test_registry.all_knowing(prompt))


def test_every_region_has_the_same_first_names():
    firsts = namesakes.FIRST_NAMES
    names = [{firsts[person] for person in PEOPLE[region]} for region in REGIONS]
    assert all(some == names[0] and len(some) == 12 for some in names)
    assert not names[0] & set(firsts)


def test_a_question_has_both_names_and_the_answer_of_registry():
    others = registry.questions("heldout", 0, 200)
    for question, other in zip(namesakes.questions("heldout", 0, 200), others):
        assert namesakes.as_in_registry(question.prompt) == other.prompt
        asked = registry.parse(other.prompt)
        first = namesakes.FIRST_NAMES[asked.person]
        if asked.is_search:
            assert question.answer == first
        else:
            assert f" {first} {asked.person}" in question.prompt
            assert question.answer == other.answer


def test_the_best_design_is_right_where_every_fact_is_known(policy):
    questions = namesakes.questions("heldout", 0, 45)
    trees = grow(
        policy, Scripted(policy, all_knowing), questions, 1, 1, fixed_design=namesakes.best_design
    )
    assert [tree.executions[0][0].reward for tree in trees] == [1.0] * len(questions)


def test_the_script_with_conditions_asks_the_same_about_all_namesakes(policy):
    """So whatever its agents learn, at most those with the same answer are right."""
    (first,) = {namesakes.FIRST_NAMES[PEOPLE["north"][0]]}
    prompts, rewards = [], []
    for region in REGIONS:
        (person,) = (p for p in PEOPLE[region] if namesakes.FIRST_NAMES[p] == first)
        asked = Asked(person, ("friend", "boss"), "minus", 27)
        text = namesakes.as_asked(asked.text())
        question = Question(region, text, asked.answer())
        seen = []

        def reply(prompt, seen=seen):
            seen.append(prompt)
            return all_knowing(prompt)

        engine = Scripted(policy, reply)
        (tree,) = grow(policy, engine, [question], 1, 1, fixed_design=registry.CONDITIONAL)
        prompts.append(seen)
        rewards.append(tree.executions[0][0].reward)
    assert len(prompts[0]) == 7 and all(some == prompts[0] for some in prompts)
    assert rewards == [1.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def rows():
    return teacher.cold_start(4000, world="namesakes")


def test_registers_hear_and_say_first_names_alone(rows):
    for role, messages, completion in rows:
        if role == "executor" and "ern register." in messages[0]["content"]:
            asked = messages[1]["content"]
            said = [completion] if asked.startswith("What") else [asked, completion]
            assert not namesakes.NAME.search(" ".join(said))


def test_the_cold_start_is_that_of_registry(rows):
    """As many samples, the same designs but for the names, and training questions only."""
    others = teacher.cold_start(4000)
    questions = 0
    for (role, messages, completion), (other_role, other_messages, other) in zip(rows, others):
        assert role == other_role and len(messages) == len(other_messages)
        if role == "designer":
            assert completion == namesakes.among_registers(other)
        text = messages[1]["content"]
        if text.startswith(("What ", "Who ")):
            questions += 1
            assert namesakes.as_in_registry(text) == other_messages[1]["content"]
            assert not registry.is_held_out(registry.parse(namesakes.as_in_registry(text)))
    assert questions > 1000
