"""Cost against size: a step's time when Q, M or N doubles; questions per second on one rank and on
two.

    python tests/bench_scale.py growth
    python tests/bench_scale.py ranks

`growth`: steps of the default run at twice each size, in turn, with a learning rate of next to nothing, so that the model stays what it is; the
median of their ratios to the step at the base size. `ranks`: steps on one rank and on two, one thread each, with the same questions in all (strong scaling) and with the same questions a rank (weak). Asked for: 2
within 15 %, and 1.6.
"""

import asyncio
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import runs  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402
from sandbox import Sandbox  # noqa: E402

BASE = train.Config(
    questions=12,
    designs=8,
    executions=4,
    steps=5,
    eval_size=1,
    eval_every=0,
    eval_fixed=False,
    save_every=0,
    lr=1e-12,
    stage="both",
    anchor=0.0,
)
SIZES = {"base": {}, "2 Q": {"questions": 24}, "2 M": {"designs": 16}, "2 N": {"executions": 8}}


async def steps(config, folder) -> list[dict]:
    """The metrics of a short run, but for its first step."""
    out = pathlib.Path(tempfile.mkdtemp(dir=folder))
    config = replace(config, out=str(out))
    trainer = train.Trainer(config, runs.open_folder(config, 0), 0, "cpu")
    async with Sandbox() as sandbox:
        await trainer.train(sandbox)
    trainer.records.close()
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]


def growth(folder, rounds=3):
    torch.set_num_threads(2)
    times = {name: [] for name in SIZES}
    for _ in range(rounds):
        for name, change in SIZES.items():
            rows = asyncio.run(steps(replace(BASE, **change), folder))
            times[name].append(
                (
                    statistics.median(row["seconds"] for row in rows),
                    statistics.median(row["tokens"] for row in rows),
                )
            )
    for name in SIZES:
        seconds, tokens = (
            [new[i] / old[i] for new, old in zip(times[name], times["base"])] for i in range(2)
        )
        print(
            f"{name:<5} {statistics.median(t for t, _ in times[name]):6.2f} s a step; to the base: time {statistics.median(seconds):.2f} "
            f"({min(seconds):.2f} to {max(seconds):.2f}), tokens {statistics.median(tokens):.2f}"
        )


def ranks(folder, rounds=3):
    cases = {
        "1 rank, 24 questions": (1, 24),
        "2 ranks, 24 questions": (2, 24),
        "2 ranks, 48 questions": (2, 48),
    }
    rates = {name: [] for name in cases}
    for number in range(rounds):
        for name, (count, questions) in cases.items():
            out = pathlib.Path(folder) / f"{number}-{count}-{questions}"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc_per_node",
                    str(count),
                    str(ROOT / "train.py"),
                    "--questions",
                    str(questions),
                    "--steps",
                    "5",
                    "--eval-size",
                    "2",
                    "--eval-every",
                    "0",
                    "--no-eval-fixed",
                    "--threads",
                    "1",
                    "--out",
                    str(out),
                ],
                check=True,
                capture_output=True,
            )
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][
                1:
            ]
            rates[name].append(questions / statistics.median(row["seconds"] for row in rows))
    one = rates["1 rank, 24 questions"]
    for name, found in rates.items():
        ratio = (
            f", {statistics.median(b / a for a, b in zip(one, found)):.2f} times one rank's"
            if found is not one
            else ""
        )
        print(
            f"{name}: {statistics.median(found):.2f} questions/s ({min(found):.2f} to {max(found):.2f}){ratio}"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        {"growth": growth, "ranks": ranks}[sys.argv[1]](folder)
