"""Cost against size: steps with twice the questions, designs or executions; one rank and two.

    python -m experiments.bench.scale growth    time of a step when Q, M or N doubles
    python -m experiments.bench.scale ranks     questions per second on one rank and on two
    python -m experiments.bench.scale growth --rounds 1     a first look

`growth` makes steps of the default run at the base size and at twice each size, in turn. The
learning rate is next to nothing, so that the model stays what it is. It prints the seconds of a
step, and the ratio to the base size of its time and of its sampled tokens. The goal is a time ratio
of 2, within 15 %.

`ranks` makes steps on one rank and on two, with one thread each: with the same questions in all
(strong scaling), and with the same questions per rank (weak scaling). It prints questions per
second, and their ratio to one rank. The goal is 1.6.

Every number is a median over the rounds; of a round's five steps the first is not counted.
Test: by hand, the commands above. Read next: ../README.md.
"""

import asyncio
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro

from config import Config
from lib import cli, launch
from sandbox import Sandbox
from train import Trainer

NUM_STEPS = 5  # the first is not counted
BASE = Config(
    questions=12,
    designs=8,
    executions=4,
    stage="both",
    lr=1e-12,
    steps=NUM_STEPS,
    eval_size=1,
    eval_every=0,
    save_every=0,
)
SIZES = {
    "base": BASE,
    "2 Q": replace(BASE, questions=24),
    "2 M": replace(BASE, designs=16),
    "2 N": replace(BASE, executions=8),
}
CASES = {  # (ranks, questions in all)
    "1 rank, 24 questions": (1, 24),
    "2 ranks, 24 questions": (2, 24),
    "2 ranks, 48 questions": (2, 48),
}
ONE_RANK = "1 rank, 24 questions"


@dataclass(frozen=True)
class Arguments:
    what: tyro.conf.Positional[Literal["growth", "ranks"]]
    rounds: int = 3  # number of rounds


def read_steps(out: pathlib.Path) -> list[dict]:
    """The metrics of a run's counted steps."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def median_of(name: str, steps: list[dict]) -> float:
    return statistics.median(step[name] for step in steps)


def ratios(values: list[float], base_values: list[float]) -> list[float]:
    """The ratio of each round."""
    return [value / base for value, base in zip(values, base_values)]


# ------------------------------------------------------------------------------------------- growth


def measure_growth(folder: pathlib.Path, num_rounds: int) -> None:
    torch.set_num_threads(2)
    seconds = {name: [] for name in SIZES}
    tokens = {name: [] for name in SIZES}
    for number in range(num_rounds):
        for name, config in SIZES.items():
            out = folder / f"{number} {name}"
            asyncio.run(train(replace(config, out=str(out))))
            steps = read_steps(out)
            seconds[name].append(median_of("seconds", steps))
            tokens[name].append(median_of("tokens", steps))

    for name in SIZES:
        time_ratios = ratios(seconds[name], seconds["base"])
        token_ratios = ratios(tokens[name], tokens["base"])
        print(
            f"{name:<5} {statistics.median(seconds[name]):6.2f} s a step; to the base: "
            f"time {statistics.median(time_ratios):.2f} "
            f"({min(time_ratios):.2f} to {max(time_ratios):.2f}), "
            f"tokens {statistics.median(token_ratios):.2f}"
        )


async def train(config: Config) -> None:
    """A run of a few steps in this process."""
    out = launch.open_folder(config, rank=0)
    trainer = Trainer(config, out, rank=0, device="cpu")
    async with Sandbox() as sandbox:
        await trainer.train(sandbox)
    trainer.records.close()


# -------------------------------------------------------------------------------------------- ranks


def measure_ranks(folder: pathlib.Path, num_rounds: int) -> None:
    rates = {name: [] for name in CASES}  # questions per second of each round
    for number in range(num_rounds):
        for name, (num_ranks, num_questions) in CASES.items():
            out = folder / f"{number} {name}"
            train_on_ranks(num_ranks, num_questions, out)
            rates[name].append(num_questions / median_of("seconds", read_steps(out)))

    for name in CASES:
        line = (
            f"{name}: {statistics.median(rates[name]):.2f} questions/s "
            f"({min(rates[name]):.2f} to {max(rates[name]):.2f})"
        )
        if name != ONE_RANK:
            rate_ratios = ratios(rates[name], rates[ONE_RANK])
            line += f", {statistics.median(rate_ratios):.2f} times one rank's"
        print(line)


def train_on_ranks(num_ranks: int, num_questions: int, out: pathlib.Path) -> None:
    """A run of a few steps, in a process per rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", str(num_ranks)]
    run = [str(cli.ROOT / "train.py")]
    run += ["--questions", str(num_questions), "--steps", str(NUM_STEPS), "--out", str(out)]
    run += ["--eval-size", "2", "--eval-every", "0"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *run], check=True, capture_output=True, env=one_thread)


def main(argv: list[str]) -> None:
    arguments = cli.flags(Arguments, argv, "Time steps of several sizes, or on several ranks.")
    measure = {"growth": measure_growth, "ranks": measure_ranks}[arguments.what]
    with tempfile.TemporaryDirectory() as folder:
        measure(pathlib.Path(folder), arguments.rounds)


if __name__ == "__main__":
    cli.command(main)
