"""The set `arithmetic`: three families of questions, each with another best design.

    compute  a product of two-digit numbers plus or minus a third. A small network can't.
    recall   two facts that only the weights hold. Closed book: an agent with a tool is refused.
             Several tries and a vote help at temperature 1.
    relay    who keeps what (one fact), then its code (another). One agent has to find the things, a
             second to read their codes, and the first one's reply is all that the second sees.

No unconditional design serves all; a script with two conditions on the question does. At
temperature 0 the cold-started executor knows every fact. The published runs of the tag v1 are of
this set; the default one, registry.py, has to be designed for.

Test: `pytest tests/test_tasks.py`. Read next: teacher.py.
"""

import itertools
import random

from data_types import Question
from designer import FIXED_DESIGNS
from lib.split import held_out

THINGS = (
    *("river", "oak", "stone", "cloud", "lamp", "bread", "horse", "glass", "chair", "flute"),
    *("wheel", "rope", "spoon", "apple", "boat", "tower", "knife", "coin", "drum", "plum"),
)
KEEPERS = (
    *("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jill"),
    *("Kai", "Lea", "Max", "Nora", "Otto", "Pia", "Quinn", "Rosa", "Sam", "Tess"),
)
CODES = dict(zip(THINGS, random.Random("codes").sample(range(10, 100), len(THINGS))))
KEEPS = dict(zip(KEEPERS, random.Random("keeps").sample(THINGS, len(KEEPERS))))


def make_compute(rng: random.Random) -> tuple[str, int]:
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(100, 999)
    forms = [
        (f"{a} * {b} + {c}", a * b + c),
        (f"{c} + {a} * {b}", a * b + c),
        (f"{a} * {b} - {c}", a * b - c),
    ]
    text, value = rng.choice(forms)
    return f"What is {text}?", value


def make_recall(rng: random.Random) -> tuple[str, str]:
    x, y = rng.sample(THINGS, 2)
    return f"Which number do the codes of {x} and {y} make?", f"{CODES[x]}{CODES[y]}"


def make_relay(rng: random.Random) -> tuple[str, str]:
    x, y = rng.sample(KEEPERS, 2)
    answer = f"{CODES[KEEPS[x]]}{CODES[KEEPS[y]]}"
    return f"Which number do the codes of what {x} and {y} keep make?", answer


FAMILIES = {  # how a question is made, and the tools that it offers
    "compute": (make_compute, ("python",)),
    "recall": (make_recall, ()),
    "relay": (make_relay, ()),
}
MIX = ("compute", "recall", "compute", "relay")  # half of the questions offer a tool


def questions(split: str, seed: int, size: int, mix=MIX) -> list[Question]:
    """`size` different questions, the families in turn as in `mix`; fewer if one is used up.

    split: "train" or "heldout".
    """
    rng = random.Random(f"arithmetic {split} {seed}")
    seen = set()
    found = []
    for family in itertools.islice(itertools.cycle(mix), size):
        make, tools = FAMILIES[family]
        for _ in range(10_000):
            prompt, answer = make(rng)
            if prompt not in seen and held_out(prompt) == (split == "heldout"):
                break
        else:  # used up: stop here, so that the families stay balanced
            return found
        seen.add(prompt)
        found.append(
            Question(
                id=f"{family}-{len(found)}",
                prompt=prompt,
                answer=str(answer),
                family=family,
                tools=tools,
            )
        )
    return found


CONDITIONAL = """\
if "*" in question:
    submit(vote([Agent("coder", "Solve it with Python.", tools=["python"])] * 3, question))
if "keep" in question:
    finder = Agent("finder", "Name what is asked about.")
    reader = Agent("reader", "Give the number.")
    submit(reader(finder(question)))
submit(vote([Agent("solver", "Solve the question.")] * 3, question))"""
DESIGNS = {**FIXED_DESIGNS, "conditional": CONDITIONAL}
