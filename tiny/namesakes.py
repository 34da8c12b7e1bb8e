"""The world `namesakes`: `registry`, but no agent can make up for a design that asks the wrong one.

    What is the code of the boss of the friend of Rida Feki minus 27?

In `registry` an agent can learn the people of all regions, and then it hardly matters which one a
design asks. Here everyone has a second name. The first names are the same twelve in every region,
and a script asks a register by these alone: "boss of Rida" is somebody else in the north and in the
east. The region is known from the last name, which is no one else's. The designer reads it, and an
agent that is handed the whole question: one agent for everything, or a register for a question of
one step, of which there are two in a hundred. All else is as in `registry`, in whose words the text
is written first: there a person is a last name.

Its model is not in the repository: `python -m tiny.build --world namesakes --out DIR`.

Source: ours.

Test: `pytest tests/test_namesakes.py`. Read next: build.py.
"""

import random
import re
from dataclasses import replace

from data_types import Question
from tiny import registry
from tiny.registry import PEOPLE, PEOPLE_PER_REGION, REGION_OF


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
    found = []
    for question in registry.questions(split, seed, size):
        answer = among_registers(question.answer)
        found.append(replace(question, prompt=as_asked(question.prompt), answer=answer))
    return found


def best_design(question: Question) -> str:
    known = replace(question, prompt=as_in_registry(question.prompt))
    return among_registers(registry.best_design(known))


# The script with conditions takes the first word in capitals: the first name.
DESIGNS = registry.DESIGNS | {"oracle": best_design}


# -------------------------------------------------------------------------------------- cold start


def translated(role: str, messages: list[dict], completion: str) -> tuple:
    """A sample of registry's cold start (teacher.py) in this world's words.

    One agent for a whole question says last names, but answers with a first name.
    """
    is_register = "ern register." in messages[0]["content"]
    said = among_registers if role == "designer" or is_register else answered
    words = {"user": asked if is_register else as_asked, "assistant": said}
    spoken = []
    for message in messages:
        change = words.get(message["role"], str)
        spoken.append(message | {"content": change(message["content"])})
    return role, spoken, said(completion)


def asked(text: str) -> str:
    """What a register is asked: by a script, or the question as it stands."""
    return as_asked(text) if text.startswith("What") else among_registers(text)


def answered(text: str) -> str:
    return re.sub(r"\\boxed{[^}]*}", lambda match: among_registers(match[0]), text)
