"""The world `namesakes`: `registry`, with first names that all regions share.

    What is the code of the boss of the friend of Rida Feki minus 27?

In `registry` an agent can learn the people of all regions, and then it hardly matters which one a
design asks. Here no register can make up for a design that asks the wrong one: everyone has two
names. The first names are the same twelve in every region, and a script asks a register by these
alone: "boss of Rida" is somebody else in the north and in the east. The region is known from the
last name, which is no one else's. The designer reads it, and an agent that is handed the whole
question: one agent for everything, or a register for a question of one step, of which there are two
in a hundred. All else is as in `registry`, in whose words the text is written first: there a person
is a last name.

Its model is not in the repository: `python -m tiny.build --world namesakes --out DIR`.

Source: ours.

Test: `pytest tests/test_namesakes.py`. Read next: build.py.
"""

import random
import re
from dataclasses import replace

from data_types import Question
from tiny import registry
from tiny.registry import PEOPLE, PEOPLE_PER_REGION, REGION_OF, REGIONS


def give_first_names() -> dict[str, str]:
    """last name -> first name. Every region has the same first names, each once."""
    rng = random.Random("namesakes")
    names = []
    while len(names) < PEOPLE_PER_REGION:
        (name,) = registry.make_names(rng, 1)
        if name not in REGION_OF and name not in names:
            names.append(name)
    firsts = {}
    for people in PEOPLE.values():
        firsts |= zip(people, rng.sample(names, len(names)))
    return firsts


FIRST_NAMES = give_first_names()
NAME = re.compile(rf"\b({'|'.join(FIRST_NAMES)})\b")


def as_asked(question: str) -> str:
    """A question of `registry` with both names.

    >>> parts = as_asked("What is Feki's code?").split()  # What is Rida Feki's code?
    >>> parts[2] == FIRST_NAMES["Feki"], parts[3]
    (True, "Feki's")
    """
    return NAME.sub(lambda match: f"{FIRST_NAMES[match[0]]} {match[0]}", question)


def as_in_registry(question: str) -> str:
    """The reverse of `as_asked`."""
    return re.sub(rf"\b({'|'.join(set(FIRST_NAMES.values()))}) ", "", question)


def among_registers(text: str) -> str:
    """A design of `registry`, or what its registers are asked and say, with first names."""
    return NAME.sub(lambda match: FIRST_NAMES[match[0]], text)


def questions(split: str, seed: int, size: int) -> list[Question]:
    """As registry.questions. Who has a code is answered with a first name."""
    translated_questions = []
    for question in registry.questions(split, seed, size):
        prompt, answer = as_asked(question.prompt), among_registers(question.answer)
        translated_questions.append(replace(question, prompt=prompt, answer=answer))
    return translated_questions


def best_design(question: Question) -> str:
    known = replace(question, prompt=as_in_registry(question.prompt))
    return among_registers(registry.best_design(known))


# The script with conditions stays as it is: it takes the first word in capitals, the first name.
DESIGNS = registry.DESIGNS | {"oracle": best_design}


# -------------------------------------------------------------------------------------- cold start


def translated(role: str, messages: list[dict], completion: str) -> tuple:
    """A sample of registry's cold start (teacher.py) in this world's words."""
    instructions = messages[0]["content"]
    if role == "designer":
        to_user, to_assistant = as_asked, among_registers
    elif any(instructions.startswith(f"{region.capitalize()}ern ") for region in REGIONS):
        to_user, to_assistant = to_a_register, among_registers
    else:  # one agent for a whole question, or one that computes
        to_user, to_assistant = as_asked, with_first_name_in_box
    spoken = []
    for message in messages:
        text = message["content"]
        if message["role"] == "user":
            text = to_user(text)
        elif message["role"] == "assistant":
            text = to_assistant(text)
        spoken.append(message | {"content": text})
    return role, spoken, to_assistant(completion)


def to_a_register(text: str) -> str:
    """What a script asks, or the question as it stands."""
    return as_asked(text) if text.startswith("What") else among_registers(text)


def with_first_name_in_box(text: str) -> str:
    """It thinks of people by their last names, and answers with a first name."""
    return re.sub(r"\\boxed{[^}]*}", lambda match: among_registers(match[0]), text)
