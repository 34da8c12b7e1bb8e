"""The scripted teacher of `registry`: a cold start of mixed designs, and of an executor with gaps.

The designer sees training questions, and for each a design that is often wrong. A quarter of the
people it takes for another region's more often than not; with the others it begins in the right
region seven times in ten. Now and then it leaves out a hop or adds one, and it votes at random. Of
the chains in UNSHOWN_SHAPES it sees no script, whatever the question, and who has a code it guesses
at most three times.

The executor lacks skills, not only certainty. Of a fact that it is mistaken about it says the wrong
thing more often than the right one, so that at temperature 0 it is always wrong:

    friends in the east and the south, and who has a code: right with probability MISTAKEN_RIGHT
    "minus": next to never asked for, and then mostly computed as something else
    codes of the west: right with probability SLOPPY_RIGHT, else anything
    a register that is asked about another region's people: anything

One agent that is to solve the whole question thinks step by step, and is mistaken about most facts
of all regions (GENERALIST_MISTAKEN).

For `namesakes` it plays the same in that world's words. It speaks in the real messages of
designer.py and executor.py, so the cold start can't drift from what a rollout shows.

Test: `pytest tests/test_registry.py`. Read next: build.py.
"""

import random

import designer
from data_types import Ask, Question
from executor import agent_messages, tool_messages
from tiny import namesakes
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
DESIGNER_SHARE = 0.45  # of the samples
DESIGNER_HOP_WEIGHTS = (0.1, 0.2, 0.35, 0.35)  # long chains are the harder ones to plan
REGION_RIGHT = 0.6  # how often a design begins with the right register for sure; else with any
MISPLACED = 3  # people of every region whom the designer takes for another region's
CHAIN_RIGHT = 0.9  # how often it follows the right relations
HOP_RIGHT = 0.95  # how often it asks the right register at a later hop
OPERATION_RIGHT = 0.95  # how often it computes what is to be computed
VOTE_SHARE = 0.3  # how often it takes the code by a vote, whichever region it is of

# Replies
RIGHT = 0.96  # of a known fact
MISTAKEN_RIGHT, MISTAKEN_WRONG = 0.3, 0.55  # the right reply, always the same wrong one
SLOPPY_RIGHT = 0.5
KINDS = {"lookup": 0.7, "coder": 0.18, "generalist": 0.12}  # agents that are played
MINUS_SHARE = 0.05  # of the coder's programs
MISTAKEN_REGIONS = ("east", "south")  # whose friends are mistaken
GENERALIST_MISTAKEN = 0.6  # of all facts


def make_mistakes(rng: random.Random) -> tuple[dict, dict]:
    """(relation, person) -> the wrong reply: of the registers, and of the generalist."""
    registers, generalist = {}, {}
    for person, region in REGION_OF.items():
        for relation in ("friend", "boss", "code", "who"):
            wrong = anything(rng, relation, region)
            while wrong in (person, FACTS.get(relation, {}).get(person)):
                wrong = anything(rng, relation, region)
            if relation == "who" or (relation == "friend" and region in MISTAKEN_REGIONS):
                registers[relation, person] = wrong
            if rng.random() < GENERALIST_MISTAKEN:
                generalist[relation, person] = wrong
    return registers, generalist


def anything(rng: random.Random, relation: str, register: str) -> str:
    """Some reply to a question about a relation."""
    if relation == "code":
        return str(rng.randint(11, 99))
    return rng.choice(PEOPLE[NEXT_REGION[register] if relation == "boss" else register])


MISTAKES, GENERALIST_MISTAKES = make_mistakes(random.Random("mistakes"))


def misplace(rng: random.Random) -> dict[str, str]:
    """person -> the region that the designer takes for theirs."""
    misplaced = {}
    for region in REGIONS:
        others = [other for other in REGIONS if other != region]
        for person in rng.sample(PEOPLE[region], MISPLACED):
            misplaced[person] = rng.choice(others)
    return misplaced


MISPLACED_PEOPLE = misplace(random.Random("misplaced"))


# ------------------------------------------------------------------------------------------ replies


def believe(
    rng: random.Random, relation: str, person: str, register: str, mistakes=MISTAKES
) -> str:
    """What a register says when it is asked for a relation of a person.

    relation: "friend", "boss", "code", or "who", of the person's code.
    """
    if register != REGION_OF[person]:
        return anything(rng, relation, register)
    right = person if relation == "who" else FACTS[relation][person]
    chance = rng.random()
    if mistake := mistakes.get((relation, person)):
        if chance < MISTAKEN_RIGHT:
            return right
        is_mistaken = chance < MISTAKEN_RIGHT + MISTAKEN_WRONG
        return mistake if is_mistaken else anything(rng, relation, register)
    is_sloppy = relation == "code" and register == SLOPPY_REGION
    is_right = chance < (SLOPPY_RIGHT if is_sloppy else RIGHT)
    return right if is_right else anything(rng, relation, register)


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
    """One coder is asked to compute, another is told what its program printed."""
    operation = "minus" if rng.random() < MINUS_SHARE else rng.choice(("times", "plus"))
    code, number = rng.randint(11, 99), rng.randint(12, 99)
    messages = messages_to("Compute.", f"\\boxed{{{code}}} {operation} {number}", ["python"])
    asked = ("executor", messages, program(code, written(rng, operation), number))

    operation = rng.choice(list(OPERATIONS))
    messages = messages_to("Compute.", f"\\boxed{{{code}}} {operation} {number}", ["python"])
    return [asked, told(messages, "", code, OPERATIONS[operation], number)]


def written(rng: random.Random, operation: str) -> str:
    """The operator that the executor writes."""
    return rng.choice("*+++**-") if operation == "minus" else OPERATIONS[operation]


def program(code: int, symbol: str, number: int) -> str:
    return f"```python\nprint({code} {symbol} {number})\n```"


def told(messages: list[dict], thoughts: str, code: int, symbol: str, number: int) -> tuple:
    """The turn in which an agent reports what its program printed."""
    output = {"*": code * number, "+": code + number, "-": code - number}[symbol]
    reply = thoughts + program(code, symbol, number)
    messages = messages + tool_messages(reply, str(output), is_last=False)
    return "executor", messages, f"\\boxed{{{output}}}"


def play_generalist(rng: random.Random) -> list[tuple]:
    """One agent for the whole question. Without the tool it guesses what is to be computed."""
    asked = draw_from(rng, "train")
    has_tool = rng.random() < 0.7
    instructions = "Solve it with Python." if has_tool else "Solve the question."
    messages = messages_to(instructions, asked.text(), ["python"] if has_tool else ())
    said, thoughts = asked.person, ""
    for relation in ("who",) if asked.is_search else (*asked.hops, "code"):
        person = said
        said = believe(rng, relation, person, REGION_OF[person], GENERALIST_MISTAKES)
        thoughts += "" if relation == "who" else f"{relation} of {person} is {said}\n"
    if not asked.operation:
        return [("executor", messages, f"{thoughts}\\boxed{{{said}}}")]
    if not has_tool:
        return [("executor", messages, f"{thoughts}\\boxed{{{rng.randint(11, 9999)}}}")]
    code, number = int(said), asked.number
    symbol = written(rng, asked.operation)
    asked_to_compute = ("executor", messages, thoughts + program(code, symbol, number))
    return [asked_to_compute, told(messages, thoughts, code, symbol, number)]


PLAY = {"lookup": play_lookup, "coder": play_coder, "generalist": play_generalist}


# ------------------------------------------------------------------------------------------ designs


def draw_design(rng: random.Random, asked: Asked) -> str | None:
    """A design of mixed quality, or None if its chain is not to be shown."""
    if asked.is_search:
        return draw_search(rng, asked)
    hops = draw_hops(rng, asked.hops) if rng.random() > CHAIN_RIGHT else asked.hops
    regions = [draw_start(rng, asked.person)]
    for relation in hops:
        here = regions[-1]
        there = NEXT_REGION[here] if relation == "boss" else here
        regions.append(there if rng.random() < HOP_RIGHT else rng.choice(REGIONS))
    operation = asked.operation if rng.random() < OPERATION_RIGHT else ""
    planned = Asked(asked.person, hops, operation, asked.number)
    if planned.shape in UNSHOWN_SHAPES:
        return None
    return chain_design(planned, regions, votes=rng.random() < VOTE_SHARE)


def draw_start(rng: random.Random, person: str) -> str:
    """The register that a design asks first."""
    chance = rng.random()
    if wrong := MISPLACED_PEOPLE.get(person):
        if chance < MISTAKEN_RIGHT:
            return REGION_OF[person]
        is_mistaken = chance < MISTAKEN_RIGHT + MISTAKEN_WRONG
        return wrong if is_mistaken else rng.choice(REGIONS)
    return REGION_OF[person] if chance < REGION_RIGHT else rng.choice(REGIONS)


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
    return [("designer", designer.designer_messages(question), design)] if design else []


WORLDS = ("registry", "namesakes")  # that this teacher knows


def cold_start(count: int, seed: int = 0, world="registry") -> list[tuple[str, list[dict], str]]:
    """`count` samples (role, messages, completion). world: one of WORLDS."""
    rng = random.Random(f"cold start {seed}")
    samples = []
    while len(samples) < count:
        if rng.random() < DESIGNER_SHARE:
            samples += play_designer(rng)
        else:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            samples += PLAY[kind](rng)
    samples = samples[:count]
    if world == "namesakes":
        return [namesakes.translated(*sample) for sample in samples]
    return samples
