"""What has to hold of the world `registry` before anybody trains on it.

    python -m experiments.gates --model tiny

1. Skill: how often a register or the coder says the right thing, by what it is asked.
2. Designs: the oracle (the best design of every question), the best unconditional script, the one
   with conditions, the model's own. At temperature 0 the oracle has to stay below 0.6, so that
   there is a skill to find, and the fixed scripts far below the oracle.
3. New scripts: on questions of unshown shapes, the best design against the best of all designs
   whose chain and operation the cold start has shown.
4. Mutual information of the best design and the question, given its template.

Test: `pytest tests/test_registry.py`. Read next: ../tiny/registry.py.
"""

import asyncio
import math
import random
from collections import Counter
from dataclasses import dataclass, replace

from config import PRESETS
from data_types import Question, seed_of
from designer import FIXED_DESIGNS
from engines.hf import HFEngine
from executor import Runtime
from lib import cli, launch
from lib.answers import last_boxed
from lib.cli import log
from lib.metrics import mean
from lib.shapes import shape
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox
from tiny import registry, teacher
from tiny.registry import FACTS, REGION_OF, REGIONS

TEMPERATURES = (0.0, 1.0)
UNCONDITIONAL = {
    region: f'submit(Agent("{region}", "{region.capitalize()}ern register.")(question))'
    for region in REGIONS
}


@dataclass(frozen=True)
class Config:
    model: str = "tiny"  # the cold-started model
    questions: int = 120  # held-out questions of the second gate, and as many of the third
    seed: int = 100  # random seed of the questions and of sampling


# ------------------------------------------------------------------------------------------ skills


def asked_of_registers() -> dict[str, list[tuple]]:
    """kind of fact -> (region, text, right reply)."""
    kinds = {}
    for person, region in REGION_OF.items():
        is_mistaken = region in teacher.MISTAKEN_REGIONS
        sloppy = " of the west" if region == registry.SLOPPY_REGION else ""
        for kind, relation in (
            ("friend, mistaken" if is_mistaken else "friend", "friend"),
            ("boss", "boss"),
            (f"code{sloppy}", "code"),
        ):
            text = f"{relation} of \\boxed{{{person}}}"
            kinds.setdefault(kind, []).append((region, text, FACTS[relation][person]))
        owner = region, f"who has {FACTS['code'][person]}", person
        kinds.setdefault("who has a code", []).append(owner)
        for relation in ("friend", "boss"):
            text, right = f"{relation} of {person}", FACTS[relation][person]
            asked = [(other, text, right) for other in REGIONS if other != region]
            kinds.setdefault(f"{relation}, of the wrong register", []).extend(asked)
    return kinds


def asked_of_the_coder(rng: random.Random) -> dict[str, list[tuple]]:
    """operation, or "report" of an output -> (messages, what the reply has to hold)."""
    kinds = {"report": []}
    for operation, symbol in registry.OPERATIONS.items():
        kinds[operation] = []
        for _ in range(40):
            a, b = rng.randint(11, 99), rng.randint(12, 99)
            messages = teacher.messages_to(
                "Compute.", f"\\boxed{{{a}}} {operation} {b}", ["python"]
            )
            kinds[operation].append((messages, teacher.program(a, symbol, b)))
            _, messages, report = teacher.told(messages, "", a, symbol, b)
            kinds["report"].append((messages, report))
    return kinds


async def skills(policy: Policy, engine, temperature: float, seed: int) -> dict[str, float]:
    async def say(number: int, messages: list[dict]) -> str:
        prompt = policy.render(messages)
        return (await engine.sample(prompt, 24, seed_of(seed, number), temperature)).text

    shares = {}
    for kind, rows in asked_of_registers().items():
        conversations = [
            teacher.messages_to(f"{region.capitalize()}ern register.", text)
            for region, text, _ in rows
        ]
        said = await asyncio.gather(*(say(*item) for item in enumerate(conversations)))
        shares[kind] = mean(last_boxed(text) == row[2] for text, row in zip(said, rows))
    for operation, rows in asked_of_the_coder(random.Random(seed)).items():
        said = await asyncio.gather(*(say(i, messages) for i, (messages, _) in enumerate(rows)))
        shares[operation] = mean(right in text for text, (_, right) in zip(said, rows))
    return shares


# ----------------------------------------------------------------------------------------- designs


async def accuracy(rollout: Rollout, questions: list[Question], design, seed: int) -> float:
    trees = await rollout.rollout(questions, 1, 1, (seed, "gates"), design)
    return mean(tree.executions[0][0].reward for tree in trees)


async def designs(rollout: Rollout, questions: list[Question], seed: int) -> dict[str, float]:
    scripts = {**UNCONDITIONAL, **FIXED_DESIGNS}
    scores = {n: await accuracy(rollout, questions, s, seed) for n, s in scripts.items()}
    best = max(scores, key=scores.get)
    scores = {f"best unconditional ({best})": scores[best]}
    others = {name: registry.DESIGNS[name] for name in ("conditional", "oracle")}
    for name, design in {**others, "own": None}.items():
        scores[name] = await accuracy(rollout, questions, design, seed)
    return scores


def unshown_questions(count: int, seed: int) -> list[Question]:
    """Questions of unshown shapes, as many of two hops as of three."""
    rng = random.Random(f"unshown {seed}")
    found = {2: [], 3: []}
    while min(map(len, found.values())) < count // 2:
        asked = registry.draw(rng)
        if asked.shape in registry.UNSHOWN_SHAPES:
            number = sum(map(len, found.values()))
            question = Question(f"u{number}", asked.text(), asked.answer())
            found[len(asked.hops)].append(question)
    return found[2][: count // 2] + found[3][: count // 2]


async def new_scripts(rollout: Rollout, questions: list[Question], seed: int) -> dict[str, float]:
    """The best design against the best whose chain and operation were shown, by number of hops."""
    shown = [s for s in registry.all_shapes() if s not in registry.UNSHOWN_SHAPES]
    scores = {}
    for num_hops in (2, 3):
        some = [q for q in questions if len(registry.parse(q.prompt).hops) == num_hops]
        inside = []
        for *hops, operation in shown:

            def design(question: Question) -> str:
                asked = registry.parse(question.prompt)
                other = replace(asked, hops=tuple(hops), operation=operation)
                regions = registry.regions_of(other)
                votes = regions[-1] == registry.SLOPPY_REGION
                return registry.chain_design(other, regions, votes)

            inside.append(await accuracy(rollout, some, design, seed))
        best = await accuracy(rollout, some, registry.best_design, seed)
        scores[f"{num_hops} hops, the best design"] = best
        scores[f"{num_hops} hops, the best of {len(shown)} shown kinds"] = max(inside)
    return scores


def information(count: int, seed: int) -> float:
    """Mutual information, in bits, of the best design's shape and the question, given the question
    without its name and number."""
    rng = random.Random(f"information {seed}")
    joint, templates = Counter(), Counter()
    for _ in range(count):
        text = registry.draw(rng).text()
        template = shape(text, text)
        joint[template, shape(text, registry.best_design(Question("", text, "")))] += 1
        templates[template] += 1
    bits = 0.0
    for (template, _), n in joint.items():  # the design is a function of the question
        bits -= n / count * math.log2(n / templates[template])
    return bits


# ------------------------------------------------------------------------------------------- start


def line(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


async def run(config: Config) -> None:
    policy = Policy(cli.model_path(config.model))
    engine = HFEngine(policy)
    questions = registry.questions("heldout", config.seed, config.questions)
    unshown = unshown_questions(config.questions, config.seed)
    log.info(f"information given the template: {information(20_000, config.seed):.2f} bits")
    async with Sandbox() as sandbox:
        for temperature in TEMPERATURES:
            budget = launch.execution_budget(PRESETS["tiny"])
            runtime = Runtime(engine, policy, sandbox, budget, temperature)
            rollout = Rollout(runtime, design_tokens=96)
            for name, values in {
                "skills": await skills(policy, engine, temperature, config.seed),
                "designs": await designs(rollout, questions, config.seed),
                "unshown shapes": await new_scripts(rollout, unshown, config.seed),
            }.items():
                log.info(f"temperature {temperature:.0f}, {name}: {line(values)}")


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Measure what has to hold of the world before training.")
    cli.check_at_least(config, 2, "questions")
    asyncio.run(run(config))


if __name__ == "__main__":
    cli.command(main)
