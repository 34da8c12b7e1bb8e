"""The scripted teacher of `registry`: a cold start of mixed designs, and of an executor with gaps.

The designer sees training questions, and for each a design that is often wrong: seven times in ten
it begins in the right region, now and then it leaves out a hop or adds one, and it votes at random.
Of the chains in UNSHOWN_SHAPES it sees no script, whatever the question, and who has a code it
guesses at most three times.

The executor lacks skills, not only certainty. Of a fact that it is mistaken about it says the wrong
thing more often than the right one, so that at temperature 0 it is always wrong:

    friends in the east and the south, and who has a code: right with probability MISTAKEN_RIGHT
    "minus": next to never asked for, and then mostly computed as something else
    codes of the west: right with probability SLOPPY_RIGHT, else anything
    a register that is asked about another region's people: anything

It speaks in the real messages of designer.py and executor.py, so the cold start can't drift from
what a rollout shows.

Test: `pytest tests/test_registry.py`. Read next: build.py.
"""

import random

from data_types import Ask, Question
from designer import designer_messages
from executor import agent_messages, tool_messages
from tiny.registry import (
    FACTS,
    NEXT_REGION,
    OPERATIONS,
    PEOPLE,
    REGION_OF,
    REGIONS,
    RELATIONS,
    SLOPPY_REGION,
    UNSHOWN_SHAPES,
    Asked,
    chain_design,
    draw_from,
    is_held_out,
    search_design,
)

# Designs
DESIGNER_SHARE = 0.3  # of the samples
DESIGNER_HOP_WEIGHTS = (0.1, 0.2, 0.35, 0.35)  # long chains are the harder ones to plan
REGION_RIGHT = 0.6  # how often a design begins with the right register for sure; else with any
CHAIN_RIGHT = 0.85  # how often it follows the right relations
HOP_RIGHT = 0.95  # how often it asks the right register at a later hop
OPERATION_RIGHT = 0.95  # how often it computes what is to be computed
VOTE_SHARE = 0.3  # how often it takes the code by a vote, whichever region it is of

# Replies
RIGHT = 0.96  # of a known fact
MISTAKEN_RIGHT, MISTAKEN_WRONG = 0.3, 0.55  # the right reply, always the same wrong one
SLOPPY_RIGHT = 0.5
KINDS = {"lookup": 0.86, "coder": 0.125, "solver": 0.015}  # agents that are played
MINUS_SHARE = 0.05  # of the coder's samples
MISTAKEN_REGIONS = ("east", "south")  # whose friends are mistaken


def make_mistakes() -> dict[tuple[str, str], str]:
    """(relation, person) -> the wrong reply, for what the executor is mistaken about."""
    rng = random.Random("mistakes")
    mistakes = {}
    for person, region in REGION_OF.items():
        friend = FACTS["friend"][person]
        others = [other for other in PEOPLE[region] if other not in (person, friend)]
        mistakes["who", person] = rng.choice(others)
        if region in MISTAKEN_REGIONS:
            mistakes["friend", person] = rng.choice(others)
    return mistakes


MISTAKES = make_mistakes()


# ------------------------------------------------------------------------------------------ replies


def believe(rng: random.Random, relation: str, person: str, register: str) -> str:
    """What a register says when it is asked for a relation of a person.

    relation: "friend", "boss", "code", or "who", of the person's code.
    """
    anything = str(rng.randint(11, 99))
    if relation != "code":
        region = NEXT_REGION[register] if relation == "boss" else register
        anything = rng.choice(PEOPLE[region])
    if register != REGION_OF[person]:
        return anything
    right = person if relation == "who" else FACTS[relation][person]
    chance = rng.random()
    if mistake := MISTAKES.get((relation, person)):
        if chance < MISTAKEN_RIGHT:
            return right
        return mistake if chance < MISTAKEN_RIGHT + MISTAKEN_WRONG else anything
    is_sloppy = relation == "code" and register == SLOPPY_REGION
    return right if chance < (SLOPPY_RIGHT if is_sloppy else RIGHT) else anything


def messages_to(instructions: str, text: str, tools=()) -> list[dict]:
    ask = Ask(
        agent=0,
        name="",
        instructions=instructions,
        tools=tuple(tools),
        memory=False,
        max_turns=2,
        text=text,
    )
    return agent_messages(ask, history=[])


def play_lookup(rng: random.Random) -> list[tuple]:
    """A register is asked one fact: by the script, with another's reply, or with the question."""
    relation = rng.choices(("friend", "boss", "code", "who"), (1, 1, 1.2, 0.8))[0]
    person = rng.choice(list(REGION_OF))
    register = REGION_OF[person] if rng.random() < 0.88 else rng.choice(REGIONS)
    name = person if rng.random() < 0.4 else f"\\boxed{{{person}}}"
    text = f"{relation} of {name}"
    if relation == "who":
        text = f"who has {FACTS['code'][person]}"
    elif relation == "code" and rng.random() < 0.3:
        asked = Asked(person, possessive=rng.random() < 0.5)
        text = text if is_held_out(asked) else asked.text()
    reply = believe(rng, relation, person, register)
    messages = messages_to(f"{register.capitalize()}ern register.", text)
    return [("executor", messages, f"\\boxed{{{reply}}}")]


def play_coder(rng: random.Random) -> list[tuple]:
    operation = "minus" if rng.random() < MINUS_SHARE else rng.choice(("times", "plus"))
    symbol = rng.choice("*+++**-") if operation == "minus" else OPERATIONS[operation]
    code, number = rng.randint(11, 99), rng.randint(12, 99)
    messages = messages_to("Compute.", f"\\boxed{{{code}}} {operation} {number}", ["python"])
    program = f"```python\nprint({code} {symbol} {number})\n```"
    output = str({"*": code * number, "+": code + number, "-": code - number}[symbol])
    told = messages + tool_messages(program, output, is_last=False)
    return [("executor", messages, program), ("executor", told, f"\\boxed{{{output}}}")]


def play_solver(rng: random.Random) -> list[tuple]:
    """One agent for everything: it can only guess."""
    messages = messages_to("Solve the question.", draw_from(rng, "train").text())
    return [("executor", messages, f"\\boxed{{{rng.randint(11, 9999)}}}")]


PLAY = {"lookup": play_lookup, "coder": play_coder, "solver": play_solver}


# ------------------------------------------------------------------------------------------ designs


def draw_design(rng: random.Random, asked: Asked) -> str | None:
    """A design of mixed quality, or None if its chain is not to be shown."""
    if asked.is_search:
        return draw_search(rng, asked)
    hops = draw_hops(rng, asked.hops) if rng.random() > CHAIN_RIGHT else asked.hops
    start = REGION_OF[asked.person] if rng.random() < REGION_RIGHT else rng.choice(REGIONS)
    regions = [start]
    for relation in hops:
        here = regions[-1]
        there = NEXT_REGION[here] if relation == "boss" else here
        regions.append(there if rng.random() < HOP_RIGHT else rng.choice(REGIONS))
    operation = asked.operation if rng.random() < OPERATION_RIGHT else ""
    planned = Asked(asked.person, hops, operation, asked.number)
    if planned.shape in UNSHOWN_SHAPES:
        return None
    return chain_design(planned, regions, votes=rng.random() < VOTE_SHARE)


def draw_hops(rng: random.Random, hops: tuple[str, ...]) -> tuple[str, ...]:
    """Another chain: a relation left out, added, or mistaken for another."""
    hops = list(hops)
    place = rng.randrange(len(hops) + 1)
    change = rng.choice(("leave out", "add", "mistake"))
    if change == "add" and len(hops) < 3:
        hops.insert(place, rng.choice(RELATIONS))
    elif change == "leave out":
        del hops[place : place + 1]
    elif place < len(hops):
        hops[place] = rng.choice(RELATIONS)
    return tuple(hops)


def draw_search(rng: random.Random, asked: Asked) -> str:
    region = REGION_OF[asked.person] if rng.random() < 0.85 else rng.choice(REGIONS)
    return search_design(region, FACTS["code"][asked.person], guesses=rng.choice((1, 1, 2, 3)))


def play_designer(rng: random.Random) -> list[tuple]:
    asked = draw_from(rng, "train", DESIGNER_HOP_WEIGHTS)
    question = Question(id="", prompt=asked.text(), answer=asked.answer())
    design = draw_design(rng, asked)
    return [("designer", designer_messages(question), design)] if design else []


def cold_start(count: int, seed: int = 0) -> list[tuple[str, list[dict], str]]:
    """`count` samples (role, messages, completion)."""
    rng = random.Random(f"cold start {seed}")
    samples = []
    while len(samples) < count:
        if rng.random() < DESIGNER_SHARE:
            samples += play_designer(rng)
        else:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            samples += PLAY[kind](rng)
    return samples[:count]
