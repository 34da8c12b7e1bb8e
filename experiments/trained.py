"""What training changed in the world `registry`, beside the model that it began with.

    python -m experiments.trained --model runs/seed-0/checkpoint --out trained.json

1. Crossed: the designer of the start or of the end, with the executor of the start or of the end.
2. Regret: accuracy that the best design of each question has more than the model's own, by the
   number of steps that a question asks for, and on new shapes.
3. Swapped: the designer is shown another question, and its design answers this one.
4. Random: the best of 64 designs of the cold start, each filled in with the question's own name and
   number, chosen on training questions.

Test: `pytest tests/test_registry.py`. Read next: claims.py.
"""

import asyncio
import json
import pathlib
import random
import re
from dataclasses import dataclass

from config import PRESETS
from data_types import Question, Tree
from designer import FIXED_DESIGNS
from engines.hf import HFEngine
from executor import Runtime
from experiments.gates import UNCONDITIONAL
from lib import cli, launch
from lib.cli import log
from lib.files import atomic_write
from lib.metrics import mean
from lib.shapes import shape
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox
from tiny import registry, teacher

TEMPERATURES = (0.0, 1.0)
RANDOM_DESIGNS = 64
CHOSEN_ON = 30  # training questions on which the best random design is chosen


@dataclass(frozen=True)
class Config:
    model: str = "tiny"  # the trained model
    start: str = "tiny"  # the model that it began with
    questions: int = 100  # held-out questions
    seed: int = 0  # random seed of the questions and of sampling
    out: str | None = None  # file of the numbers, as JSON


class Subject:
    """Asks a designer and an executor, each of which may be the start's or the trained one."""

    def __init__(self, models: dict, sandbox: Sandbox, temperature: float, seed: int):
        self.models = models  # "start", "end" -> (engine, policy)
        self.sandbox = sandbox
        self.temperature = temperature
        self.seed = seed

    async def answer(self, questions, design=None, designer="end", executor="end") -> list[Tree]:
        """One answer to each question. design: as for Rollout.rollout."""
        engine, policy = self.models[executor]
        budget = launch.execution_budget(PRESETS["tiny"])
        runtime = Runtime(engine, policy, self.sandbox, budget, self.temperature)
        rollout = Rollout(runtime, self.models[designer], design_tokens=96)
        return await rollout.rollout(questions, 1, 1, (self.seed, "trained"), design)

    async def accuracy(self, questions, design=None, **roles) -> float:
        return mean(rewards(await self.answer(questions, design, **roles)))


def rewards(trees: list[Tree]) -> list[float]:
    executions = [tree.executions[0][0] for tree in trees]
    return [execution.reward for execution in executions if execution.valid]


async def crossed(subject: Subject, questions: list[Question]) -> dict[str, float]:
    scores = {}
    for designer in ("start", "end"):
        for executor in ("start", "end"):
            roles = {"designer": designer, "executor": executor}
            name = f"designer of the {designer}, executor of the {executor}"
            scores[name] = await subject.accuracy(questions, **roles)
    return scores


async def compared(subject: Subject, questions: list[Question], model: str) -> dict[str, dict]:
    """Accuracy by number of steps of the model's own designs and of those by hand."""
    designs = {"own": None} | {name: registry.DESIGNS[name] for name in ("conditional", "oracle")}
    scores = {}
    for name, design in designs.items():
        trees = await subject.answer(questions, design, designer=model, executor=model)
        for group, members in grouped(trees).items():
            scores.setdefault(group, {"questions": len(members)})[name] = mean(rewards(members))
    for of_group in scores.values():
        of_group["regret"] = of_group["oracle"] - of_group["own"]
    fixed = {**UNCONDITIONAL, **FIXED_DESIGNS}
    unconditional = [await subject.accuracy(questions, s, executor=model) for s in fixed.values()]
    scores["all"]["best unconditional"] = max(unconditional)
    return scores


def grouped(trees: list[Tree]) -> dict[str, list[Tree]]:
    """By the number of steps that the question asks for; those of new shapes; all."""
    groups = {}
    for tree in trees:
        asked = registry.parse(tree.question.prompt)
        steps = "search" if asked.is_search else f"{asked.num_steps} steps"
        groups.setdefault(steps, []).append(tree)
        if asked.shape in registry.NEW_SHAPES:
            groups.setdefault("new shapes", []).append(tree)
    return dict(sorted(groups.items())) | {"all": trees}


async def swapped(subject: Subject, questions: list[Question]) -> dict[str, float]:
    """Accuracy with the design of another question, as it is and filled in for this one."""
    trees = await subject.answer(questions)
    scripts = [tree.designs[0].script for tree in trees]
    others = zip([*questions[1:], questions[0]], [*scripts[1:], scripts[0]])
    as_it_is, filled_in = {}, {}
    for question, (other, script) in zip(questions, others):
        as_it_is[question.id] = script
        filled_in[question.id] = fill(shape(other.prompt, script), question)

    async def accuracy(designs: dict) -> float:
        return await subject.accuracy(questions, lambda question: designs[question.id])

    return {
        "own": mean(rewards(trees)),
        "the design of another question": await accuracy(as_it_is),
        "its shape, filled in": await accuracy(filled_in),
    }


def fill(shape_of_design: str, question: Question) -> str:
    """A design of this shape for another question: with its name, then with its number.

    >>> question = Question("", "What is Feki's code plus 27?", "")
    >>> fill('x = north("code of _")\\nsubmit(coder(x + " minus _"))', question)
    'x = north("code of Feki")\\nsubmit(coder(x + " minus 27"))'
    """
    words = iter(re.findall(r"[A-Z]\w+|\d+", question.prompt.split(" ", 1)[1]))
    return re.sub(r"\b_\b", lambda match: next(words, "_"), shape_of_design)


async def best_of_random(subject: Subject, questions: list[Question], seed: int) -> float:
    """Held-out accuracy of the best of RANDOM_DESIGNS shapes, chosen on training questions."""
    rng = random.Random(f"random designs {seed}")
    shapes = []
    while len(shapes) < RANDOM_DESIGNS:
        asked = registry.draw_from(rng, "train")
        design = teacher.draw_design(rng, asked)
        if design and (new := shape(asked.text(), design)) not in shapes:
            shapes.append(new)
    training = registry.questions("train", seed, CHOSEN_ON)
    scores = [
        await subject.accuracy(training, lambda question, s=s: fill(s, question)) for s in shapes
    ]
    best = shapes[scores.index(max(scores))]
    return await subject.accuracy(questions, lambda question: fill(best, question))


async def measure(config: Config) -> dict:
    models = {}
    for name, model in (("start", config.start), ("end", config.model)):
        policy = Policy(cli.model_path(model))
        models[name] = HFEngine(policy), policy
    questions = registry.questions("heldout", config.seed, config.questions)
    results = {}
    async with Sandbox() as sandbox:
        for temperature in TEMPERATURES:
            subject = Subject(models, sandbox, temperature, config.seed)
            results[f"temperature {temperature:.0f}"] = {
                "crossed": await crossed(subject, questions),
                "start": await compared(subject, questions, "start"),
                "end": await compared(subject, questions, "end"),
                "swapped": await swapped(subject, questions),
                f"best of {RANDOM_DESIGNS} random": await best_of_random(
                    subject, questions, config.seed
                ),
            }
    return results


def lines(results: dict, name: str = "") -> list[str]:
    """Nested results, a line for each dictionary of numbers."""
    numbers = {key: value for key, value in results.items() if not isinstance(value, dict)}
    said = []
    if numbers:
        values = ", ".join(f"{key} {value:.2f}" for key, value in numbers.items())
        said.append(f"{name}: {values}" if name else values)
    for key, value in results.items():
        if isinstance(value, dict):
            said += lines(value, f"{name}, {key}" if name else key)
    return said


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Measure what training changed in the default world.")
    cli.check_at_least(config, 2, "questions")
    results = asyncio.run(measure(config))
    log.info("\n".join(lines(results)))
    if config.out:
        atomic_write(pathlib.Path(config.out), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    cli.command(main)
