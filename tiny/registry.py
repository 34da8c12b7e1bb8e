"""The default set of questions, `registry`: a small closed world that has to be designed for.

    What is the code of the boss of the friend of Feki minus 27?
    What is Feki's friend's code?
    Who in the north has the code 37?

Forty-eight people live in four regions. Everyone has a friend in the same region, a boss in the
next one (north, east, south, west, north), and a code of two digits, which no one else in the
region has. Only the weights of a model hold these facts, and at first a register knows the people
of one region, the one that its instructions name. So a design asks the right register at every
step, and which is the right one to begin with depends on the name, not on the form of the question:

    north = Agent("north", "Northern register.")
    east = Agent("east", "Eastern register.")
    coder = Agent("coder", "Compute.", tools=["python"])
    x = north("friend of Feki")
    x = north("boss of " + x)
    x = east("code of " + x)
    x = coder(x + " minus 27")
    submit(x)

The west keeps its codes badly, so that a vote of three pays there. Who has a code is guessed, and
checked, until the guess is right. Every question knows its best design: `best_design`.

What a cold-started executor does not know (teacher.py): who is friends with whom in the east and
the south, who has which code, and what "minus" means. The designer takes a quarter of the people
for another region's.

Test: `pytest tests/test_registry.py`. Read next: teacher.py.
"""

import itertools
import random
import re
from dataclasses import dataclass

from data_types import Question
from lib.split import held_out

REGIONS = ("north", "east", "south", "west")
NEXT_REGION = dict(zip(REGIONS, (*REGIONS[1:], REGIONS[0])))
SLOPPY_REGION = "west"  # keeps its codes badly
PEOPLE_PER_REGION = 12
RELATIONS = ("friend", "boss")
OPERATIONS = {"times": "*", "plus": "+", "minus": "-"}
MAX_HOPS = 3
HOP_WEIGHTS = (0.2, 0.4, 0.3, 0.1)  # of 0, 1, 2, 3 relations in a question
SEARCH_SHARE = 0.1  # of the questions ask who has a code
GUESSES = 5  # of the best design for these
NUM_UNSHOWN = 16  # shapes of questions for which the cold start shows no right script
NUM_NEW = 12  # of these, shapes that training never asks for
NEW_SHAPE_EVERY = 3  # every third held-out question has one of them
MAX_QUESTIONS = 6000  # of one split and seed


# ------------------------------------------------------------------------------- people and facts


def make_names(rng: random.Random, count: int) -> list[str]:
    """Different names such as Feki."""
    names = []
    while len(names) < count:
        syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)]
        name = "".join(syllables).capitalize()
        if name not in names:
            names.append(name)
    return names


def make_friends(rng: random.Random, people: list[str]) -> dict[str, str]:
    """Everyone has one friend, and nobody is their own."""
    while True:
        friends = rng.sample(people, len(people))
        if all(person != friend for person, friend in zip(people, friends)):
            return dict(zip(people, friends))


def make_world():
    """(region of everyone, people of every region, facts: relation -> person -> what it says)."""
    rng = random.Random("registry")
    names = make_names(rng, PEOPLE_PER_REGION * len(REGIONS))
    people = {region: names[i :: len(REGIONS)] for i, region in enumerate(REGIONS)}
    region_of = {name: region for region in REGIONS for name in people[region]}
    facts = {"friend": {}, "boss": {}, "code": {}}
    for region in REGIONS:
        here, there = people[region], people[NEXT_REGION[region]]
        facts["friend"] |= make_friends(rng, here)
        facts["boss"] |= zip(here, rng.sample(there, len(there)))
        facts["code"] |= zip(here, map(str, rng.sample(range(11, 100), len(here))))
    return region_of, people, facts


REGION_OF, PEOPLE, FACTS = make_world()


# -------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Asked:
    """What a question asks: the code at the end of a chain of relations, or who has a code."""

    person: str  # where the chain begins; in a search, the answer
    hops: tuple[str, ...] = ()  # relations, in the order in which they are followed
    operation: str = ""  # what is done with the code: one of OPERATIONS, or nothing
    number: int = 0  # its second operand
    possessive: bool = False  # "Feki's boss's code", not "the code of the boss of Feki"
    is_search: bool = False

    @property
    def shape(self) -> tuple:
        return ("search",) if self.is_search else (*self.hops, self.operation)

    @property
    def num_steps(self) -> int:
        """Primitive steps: facts that are looked up, and the operation."""
        return len(self.hops) + 1 + bool(self.operation)

    def text(self) -> str:
        """
        >>> Asked("Feki", ("friend", "boss"), "minus", 27).text()
        'What is the code of the boss of the friend of Feki minus 27?'
        """
        if self.is_search:
            region, code = REGION_OF[self.person], FACTS["code"][self.person]
            return f"Who in the {region} has the code {code}?"
        if self.possessive:
            chain = "'s ".join((self.person, *self.hops, "code"))
        else:
            chain = " of the ".join(("the code", *reversed(self.hops))) + f" of {self.person}"
        operation = f" {self.operation} {self.number}" if self.operation else ""
        return f"What is {chain}{operation}?"

    def answer(self) -> str:
        if self.is_search:
            return self.person
        person = self.person
        for relation in self.hops:
            person = FACTS[relation][person]
        code = int(FACTS["code"][person])
        results = {"times": code * self.number, "plus": code + self.number}
        results |= {"minus": code - self.number, "": code}
        return str(results[self.operation])


def parse(text: str) -> Asked:
    """The reverse of `Asked.text`.

    >>> parse("What is Feki's friend's boss's code minus 27?").hops
    ('friend', 'boss')
    """
    words = re.sub(r"'s|\?", "", text).split()
    if words[0] == "Who":
        region, code = words[3], words[-1]
        person = next(name for name in PEOPLE[region] if FACTS["code"][name] == code)
        return Asked(person, is_search=True)
    hops = [word for word in words if word in RELATIONS]
    possessive = "'s" in text
    operation = words[-2] if words[-2] in OPERATIONS else ""
    return Asked(
        person=next(word for word in words[2:] if word[0].isupper()),
        hops=tuple(hops if possessive else reversed(hops)),
        operation=operation,
        number=int(words[-1]) if operation else 0,
        possessive=possessive,
    )


def draw(rng: random.Random, hop_weights=HOP_WEIGHTS) -> Asked:
    person = rng.choice(list(REGION_OF))
    if rng.random() < SEARCH_SHARE:
        return Asked(person, is_search=True)
    num_hops = rng.choices(range(MAX_HOPS + 1), hop_weights)[0]
    return Asked(
        person=person,
        hops=tuple(rng.choices(RELATIONS, k=num_hops)),
        operation=rng.choice(("", "", *OPERATIONS)),
        number=rng.randint(12, 99),
        possessive=rng.random() < 0.5,
    )


def all_shapes() -> list[tuple]:
    chains = [c for n in range(MAX_HOPS + 1) for c in itertools.product(RELATIONS, repeat=n)]
    return [(*chain, operation) for chain in chains for operation in ("", *OPERATIONS)]


def make_unshown_shapes() -> list[tuple]:
    """A third of the shapes of two and three hops."""
    shapes = [shape for shape in all_shapes() if len(shape) > 2]
    return random.Random("unshown shapes").sample(shapes, NUM_UNSHOWN)


UNSHOWN_SHAPES = make_unshown_shapes()
NEW_SHAPES = UNSHOWN_SHAPES[:NUM_NEW]


def is_held_out(asked: Asked) -> bool:
    """Which side of the split it is on.

    All questions of a new shape are held out, and of the others a quarter: whole chains, of a
    person and relations, whatever is computed with the code at their end.
    """
    if asked.shape in NEW_SHAPES:
        return True
    return held_out(f"{asked.person} {asked.hops} {asked.is_search}")


def draw_from(rng: random.Random, split: str, hop_weights=HOP_WEIGHTS) -> Asked:
    """split: "train" or "heldout"."""
    while True:
        asked = draw(rng, hop_weights)
        if is_held_out(asked) == (split == "heldout"):
            return asked


def family(asked: Asked) -> str:
    if asked.shape in NEW_SHAPES:
        return "new shape"
    if asked.is_search:
        return "search"
    return f"{asked.num_steps} steps" if asked.num_steps > 1 else "1 step"


def questions(split: str, seed: int, size: int) -> list[Question]:
    """`size` questions, at most MAX_QUESTIONS. split: "train" or "heldout".

    Held-out ones are different. Training ones may come again: there are few of one step.
    """
    rng = random.Random(f"registry {split} {seed}")
    found, texts = [], set()
    while len(found) < min(size, MAX_QUESTIONS):
        asked = draw_from(rng, split)
        text = asked.text()
        if split == "heldout":
            wants_new = len(found) % NEW_SHAPE_EVERY == 0
            if (asked.shape in NEW_SHAPES) != wants_new or text in texts:
                continue
        texts.add(text)
        found.append(
            Question(
                id=f"registry-{len(found)}",
                prompt=text,
                answer=asked.answer(),
                family=family(asked),
            )
        )
    return found


# ------------------------------------------------------------------------------------- best designs


def agent(region: str) -> str:
    return f'{region} = Agent("{region}", "{region.capitalize()}ern register.")'


CODER = 'coder = Agent("coder", "Compute.", tools=["python"])'


def regions_of(asked: Asked) -> list[str]:
    """The register to ask at each hop, and last for the code."""
    regions = [REGION_OF[asked.person]]
    for relation in asked.hops:
        here = regions[-1]
        regions.append(NEXT_REGION[here] if relation == "boss" else here)
    return regions


def chain_design(asked: Asked, regions: list[str], votes: bool) -> str:
    """Ask `regions` one after the other, and compute. votes: take the code by a vote of three."""
    lines = [agent(region) for region in dict.fromkeys(regions)]
    if asked.operation:
        lines.append(CODER)
    elif not asked.hops and not votes:  # one agent can be asked as it stands
        return "\n".join([*lines, f"submit({regions[0]}(question))"])
    relations = (*asked.hops, "code")
    for i, (relation, region) in enumerate(zip(relations, regions)):
        text = f'"{relation} of " + x' if i else f'"{relation} of {asked.person}"'
        is_vote = votes and relation == "code"
        lines.append(f"x = vote([{region}] * 3, {text})" if is_vote else f"x = {region}({text})")
    if asked.operation:
        lines.append(f'x = coder(x + " {asked.operation} {asked.number}")')
    return "\n".join([*lines, "submit(x)"])


def search_design(region: str, code: str, guesses: int) -> str:
    """Guess who has the code, and check, until a guess is right."""
    ask = f'{region}("who has {code}")'
    if guesses == 1:
        return f"{agent(region)}\nsubmit({ask})"
    return (
        f"{agent(region)}\n"
        f"for i in range({guesses}):\n"
        f"    x = {ask}\n"
        f'    if "{code}" in {region}("code of " + x):\n'
        "        break\n"
        "submit(x)"
    )


def best_design(question: Question) -> str:
    """The design that asks the right agents in the right order, and votes or loops where it pays.

    For the cold-started executor: one that has learned the west's codes needs no vote.
    """
    asked = parse(question.prompt)
    if asked.is_search:
        return search_design(REGION_OF[asked.person], FACTS["code"][asked.person], GUESSES)
    regions = regions_of(asked)
    return chain_design(asked, regions, votes=regions[-1] == SLOPPY_REGION)


# What a person can write who knows the language of the questions, but not who lives where: it
# begins in the north.
CONDITIONAL = """\
regions = ["north", "east", "south", "west"]
register = {r: Agent(r, r.capitalize() + "ern register.") for r in regions}
words = question.rstrip("?").replace("'s", "").split()
if words[0] == "Who":
    submit(vote([register[words[3]]] * 5, "who has " + words[-1]))
hops = [word for word in words if word in ("friend", "boss")]
x = [word for word in words[1:] if word[0].isupper()][0]
for hop in hops if "'s" in question else hops[::-1]:
    x = register[regions[0]](hop + " of " + x)
    regions = regions[1:] + regions[:1] if hop == "boss" else regions
x = vote([register[regions[0]]] * 3, "code of " + x)
if words[-2] in ("times", "plus", "minus"):
    x = Agent("coder", "Compute.", tools=["python"])(x + f" {words[-2]} {words[-1]}")
submit(x)"""
DESIGNS = {
    "one register": 'submit(Agent("north", "Northern register.")(question))',
    "conditional": CONDITIONAL,
    "oracle": best_design,
}
