"""The paper's claims, checked on a laptop: the runs, what they say, and the pictures.

    python -m experiments.run --claim 1 --seeds 1    one seed of one claim's runs
    python -m experiments.run                        every claim, five seeds: hours of two cores
    python -m experiments.run --draw                 figures and tables, from the published runs

What is done is skipped, what was stopped goes on. What the claims are, and what decides: claims.py.
A row of runs.jsonl is what is kept of one run. The published runs were made at the tag v1, whose
default had a KL term of its own (README.md); runs of today are compared with those that had none.

Test: `pytest tests/test_experiments.py`. Read next: bench/step.py.
"""

import concurrent.futures
import fcntl
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass

from tqdm import tqdm

from experiments.claims import (
    ARMS,
    CLAIMS,
    CROSSED,
    DERIVED,
    PUBLISHED_ONLY,
    SAMPLED,
    draw,
    final,
    interval,
    page,
    read,
)
from lib import cli
from lib.cli import ROOT, log
from lib.errors import UserError
from lib.files import atomic_write, read_jsonl

FOLDER = ROOT / "experiments"
PUBLISHED = FOLDER / "results" / "runs.jsonl"
# As the published runs, unless an arm says otherwise.
COMMON = "--model tiny/arithmetic --tasks arithmetic --max-calls 8 --eval-every 10 --phase-steps 10"
ENVIRONMENT = os.environ | {
    # One thread each, so that two runs share two cores and a rerun is bit for bit the same.
    "OMP_NUM_THREADS": "1",
    # Also on another CPU: with wider vectors sums are rounded in another order.
    "ATEN_CPU_CAPABILITY": "avx2",
}
START = "tiny/arithmetic"  # the model that all begin with
DEFAULT_STEPS = 100
KEPT_STEPS = {"stagewise": (50,)}  # steps after which the model is kept, besides the last
# Arms of today whose published counterpart has another name, or had no such KL term anyway.
PUBLISHED_AS = {
    "stagewise": "no anchor",
    "designer": "designer",
    "executor": "executor",
    "coupled": "coupled",
    "two policies": "two policies",
    "designer, frozen executor": "designer, frozen executor",
    "single agent": "single agent",
    "coder agent": "coder agent",
}


# ------------------------------------------------------------------------------------------- a run


def run(arm: str, seed: int, folder: pathlib.Path) -> dict:
    """Train one arm with one seed, or go on with it, and return its row.

    Raises UserError with train.py's own line.
    """
    if arm in DERIVED:
        measure = {"crossed": crossed, "variance": variance, "voted": voted}[arm]
        return {"arm": arm, "seed": seed, **measure(seed, folder)}
    out = place(arm, seed, folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    # The training holds the lock, too: one that outlives this program is waited for.
    with open(out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        train(arm, seed, out, lock.fileno())
    rows = read_jsonl(out / "metrics.jsonl")
    num_spoiled = spoiled(rows)
    if num_spoiled:
        log.info(f"{out}: {num_spoiled} executions failed or timed out; was the machine busy?")
    return summary(arm, seed, rows)


def train(arm: str, seed: int, out: pathlib.Path, lock: int) -> None:
    """Train in stretches, and keep the model at the end of each."""
    flags = shlex.split(f"{COMMON} {ARMS[arm]}")
    last = DEFAULT_STEPS
    if "--steps" in flags:
        last = int(flags[flags.index("--steps") + 1])
    for steps in (*KEPT_STEPS.get(arm, ()), last):
        kept = out / "steps" / str(steps)
        if kept.exists():
            continue
        resume = ["--resume"] if (out / "config.json").exists() else []
        arguments = [*flags, "--seed", seed, "--out", out, *resume, "--steps", steps]
        execute(["train.py", *arguments], lock)
        new = kept.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        ignore = shutil.ignore_patterns("trainer.pt")
        shutil.copytree(out / "checkpoint", new, ignore=ignore)
        new.rename(kept)


def spoiled(rows: list[dict]) -> int:
    """Executions of a training that a busy machine may have spoiled."""
    return sum(row["infra_errors"] + row["statuses"].get("timeout", 0) for row in rows)


# Trainings and evaluations: when this program ends, they do.
RUNNING: set[subprocess.Popen] = set()
STOPPED = threading.Event()
LOCK = threading.Lock()


def execute(command: list, *descriptors: int) -> None:
    """Run a program of the project. Raises UserError with its last line."""
    program, *arguments = [str(word) for word in command]
    with LOCK:
        if STOPPED.is_set():
            raise UserError("stopped")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
            env=ENVIRONMENT,
        )
        RUNNING.add(process)
    _, errors = process.communicate()
    RUNNING.discard(process)
    if process.returncode:
        last_line = (errors.strip().splitlines() or ["killed"])[-1]
        raise UserError(f"{program} {shlex.join(arguments)}: {last_line}")


def stop() -> None:
    with LOCK:
        STOPPED.set()
        for process in set(RUNNING):
            process.terminate()


def place(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{re.sub('[^a-z0-9]+', '-', arm)}-{seed}"


def model(arm: str, seed: int, step: int, folder: pathlib.Path) -> str:
    """The model of a run after `step` steps; of step 0 it is the start of all."""
    return str(place(arm, seed, folder) / "steps" / str(step)) if step else START


def needs(arm: str, seed: int, folder: pathlib.Path) -> list[tuple[str, int]]:
    """The runs whose models a derived arm measures, where they are not in `folder`."""
    wanted = {
        "crossed": [("stagewise", 50), ("stagewise", 100)],
        "variance": [("stagewise", 100)],
        "voted": [("stagewise", 100), ("single agent", 500)],
    }
    missing = []
    for other, step in wanted.get(arm, ()):
        if not pathlib.Path(model(other, seed, step, folder)).exists():
            missing.append((other, seed))
    return missing


# ------------------------------------------------------------------ measurements of trained models


def evaluate(out: pathlib.Path, *arguments) -> dict:
    """Results by mode, of held-out questions, with the training's limits."""
    limits = ["--design-tokens", 96, "--reply-tokens", 48, "--max-calls", 8]
    sets = ["--tasks", "arithmetic", "--limit", 100]
    execute(["eval.py", *sets, *limits, *arguments, "--out", out])
    results = json.loads((out / "results.json").read_text())["results"]
    num_failed = sum(result["infra_errors"] for result in results)
    if num_failed:
        raise UserError(f"{out}: {num_failed} answers failed; the same command asks again")
    return {result["mode"].split(" (")[0]: result for result in results}


def crossed(seed: int, folder: pathlib.Path) -> dict:
    """Held-out accuracy with the designer of one step and the executor of another, two answers a
    question: matrix[designer][executor]."""
    matrix = {str(designer): {} for designer in CROSSED}
    for designer, executor in itertools.product(CROSSED, CROSSED):
        out = place("stagewise", seed, folder) / "crossed" / f"{designer}-{executor}"
        results = evaluate(
            out,
            *("--modes", "metaagent", "--samples", 2, "--seed", seed),
            *("--designer", model("stagewise", seed, designer, folder)),
            *("--model", model("stagewise", seed, executor, folder)),
        )
        matrix[str(designer)][str(executor)] = results["metaagent"]["accuracy"]
    return {"matrix": matrix}


def variance(seed: int, folder: pathlib.Path) -> dict:
    """The reward's variance between and within designs, of SAMPLED x SAMPLED executions of 24
    training questions, before and after training.

    Two questions at a time, in steps that do not move the weights.
    """
    steps = {}
    for step in (0, 100):
        out = place("stagewise", seed, folder) / f"variance-{step}"
        shutil.rmtree(out, ignore_errors=True)
        flags = "--tasks arithmetic --max-calls 8 --steps 12 --questions 2"
        flags += f" --designs {SAMPLED} --executions {SAMPLED} --lr 1e-12"
        flags += f" --eval-size 1 --eval-every 0 --seed {seed}"
        start = ["--model", model("stagewise", seed, step, folder)]
        execute(["train.py", *flags.split(), *start, "--out", out])
        rows = read_jsonl(out / "metrics.jsonl")
        num_spoiled = spoiled(rows)
        if num_spoiled:
            raise UserError(f"{out}: {num_spoiled} executions failed; is the machine busy?")
        steps[str(step)] = mean_variance(rows)
    return {"steps": steps}


def mean_variance(rows: list[dict]) -> dict:
    return {
        kind: statistics.fmean(row[f"variance_{kind}_designs"] for row in rows)
        for kind in ("between", "within")
    }


def voted(seed: int, folder: pathlib.Path) -> dict:
    """Own designs and self-consistency at equal tokens: the stagewise run's weights, and those of
    the trained single agent."""
    own = evaluate(
        place("stagewise", seed, folder) / "voted",
        *("--modes", "metaagent,self-consistency", "--samples", 2, "--seed", seed),
        *("--model", model("stagewise", seed, 100, folder)),
    )
    single = evaluate(
        place("single agent", seed, folder) / "voted",
        *("--modes", "self-consistency", "--samples", 2, "--seed", seed),
        *("--vote-tokens", own["metaagent"]["tokens"]),
        *("--model", model("single agent", seed, 500, folder)),
    )
    results = {
        "metaagent": own["metaagent"],
        "self_consistency": own["self-consistency"],
        "single_self_consistency": single["self-consistency"],
    }
    accuracies = {name: result["accuracy"] for name, result in results.items()}
    return {**accuracies, "tokens": {name: r["tokens"] for name, r in results.items()}}


# ------------------------------------------------------------------------------------- what is kept


def summary(arm: str, seed: int, rows: list[dict]) -> dict:
    """What is kept of a run.

    evals: [updates done, tokens sampled in training until then, held-out accuracy].
    """
    evals = [[0, 0, rows[0].get("eval_before", rows[0]["eval_accuracy"])]]
    tokens = 0
    for row in rows:
        tokens += row["tokens"]
        if "eval_accuracy" in row and row["step"] > 0:
            evals.append([row["step"] + 1, tokens, row["eval_accuracy"]])
    evaluation = ("eval_families", "eval_fixed", "eval_fixed_families")
    return {
        "arm": arm,
        "seed": seed,
        "flags": " ".join(f"{COMMON} {ARMS[arm]} --seed {seed}".split()),
        "evals": evals,
        "before": {key: rows[0][key] for key in evaluation},
        "after": {key: rows[-1][key] for key in evaluation},
        "variance": mean_variance(rows),
        "seconds": round(sum(row["seconds"] for row in rows)),
    }


def publish(results: dict, folder: pathlib.Path) -> None:
    """Figures and tables of `results`, into their folder and, for the published ones, README.md."""
    draw(results, folder)
    atomic_write(folder / "table.md", page(results) + "\n")
    if folder == PUBLISHED.parent:
        readme = FOLDER / "README.md"
        before, rest = readme.read_text().split("<!-- claims -->\n")
        _, after = rest.split("<!-- /claims -->")
        tables = f"<!-- claims -->\n{page(results)}\n<!-- /claims -->"
        atomic_write(readme, before + tables + after)


def compare(rows: dict) -> str:
    """New runs beside the published ones: in or out of their 95 % prediction interval."""
    published = read(PUBLISHED)
    lines = []
    for (arm, seed), row in sorted(rows.items()):
        name = PUBLISHED_AS.get(arm)
        finals = [final(other) for (other_arm, _), other in published.items() if other_arm == name]
        if len(finals) < 2:
            continue
        mean, low, high = interval(finals)
        # Of one run, where `interval` is of the mean of all.
        half = (high - mean) * (len(finals) + 1) ** 0.5
        expected = "as expected" if abs(final(row) - mean) <= half else "NOT as expected"
        lines.append(
            f"{arm}, seed {seed}: final {final(row):.3f}, {expected} ({mean - half:.3f} to "
            f"{mean + half:.3f}, by {len(finals)} published seeds of {name!r}, mean {mean:.3f})"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- start


@dataclass(frozen=True)
class Config:
    claim: int = 0  # claim to check, 1 to 8; 0: all
    seeds: int = 5  # number of seeds of every arm: 0, 1, ...
    results: str = "runs/experiments"  # folder of runs.jsonl, figures and tables
    workers: int = 0  # trainings at the same time, one thread each; 0: one for each core
    draw: bool = False  # run nothing: draw the published results again


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Check the paper's claims on the tiny model.")
    if config.claim not in (0, *CLAIMS):
        raise UserError(f"--claim {config.claim}: has to be 1 to {len(CLAIMS)}, or 0 for all")
    if not 1 <= config.seeds <= 10 or config.workers < 0:
        raise UserError(f"--seeds {config.seeds} --workers {config.workers}: 1 to 10, 0 or more")
    if config.draw:
        if not PUBLISHED.exists():
            raise UserError(f"--draw: no published results ({PUBLISHED})")
        publish(read(PUBLISHED), PUBLISHED.parent)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = pathlib.Path(config.results).resolve()
    if folder == PUBLISHED.parent:
        raise UserError("--results: the published runs are of another version; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    done = read(folder / "runs.jsonl")
    arms = arms_to_run(config.claim)
    todo = [(arm, seed) for seed in range(config.seeds) for arm in arms if (arm, seed) not in done]
    log.info(f"{len(arms)} arms, {config.seeds} seeds: {len(todo)} runs to do")

    runs = ROOT / "runs" / "experiments"
    derived = [item for item in todo if item[0] in DERIVED]
    trainings = [item for item in todo if item not in derived]
    for arm, seed in derived:
        trainings += needs(arm, seed, runs)
    # The trainings before what is measured on them.
    for items in (list(dict.fromkeys(trainings)), derived):
        run_all(items, runs, done, folder / "runs.jsonl", config.workers or os.cpu_count())

    results = read(folder / "runs.jsonl")
    publish(results, folder)
    chosen = {
        (arm, seed): row
        for (arm, seed), row in results.items()
        if arm in arms and seed < config.seeds
    }
    log.info(compare(chosen))
    log.info(page(chosen))


def arms_to_run(claim: int) -> list[str]:
    """The arms of a claim, or of all, that this version can run."""
    arms = []
    for number, candidate in CLAIMS.items():
        if claim in (0, number):
            arms += candidate.arms
    return [arm for arm in dict.fromkeys(arms) if arm not in PUBLISHED_ONLY]


def run_all(
    items: list[tuple], runs: pathlib.Path, done: dict, path: pathlib.Path, workers: int
) -> None:
    """Run them, so many at a time; append the rows that are new to the file."""
    STOPPED.clear()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            waiting = [pool.submit(run, arm, seed, runs) for arm, seed in items]
            ended = concurrent.futures.as_completed(waiting)
            for future in tqdm(ended, "runs", len(waiting), disable=None):
                row = future.result()
                if (row["arm"], row["seed"]) in done:
                    continue
                with open(path, "a") as file:
                    file.write(json.dumps(row) + "\n")
                change = ""
                if "evals" in row:
                    change = f": {row['evals'][0][2]:.3f} -> {final(row):.3f}"
                log.info(f"{row['arm']}, seed {row['seed']}{change}")
        finally:  # stopped, or one failed: the others are stopped too, and go on next time
            pool.shutdown(wait=False, cancel_futures=True)
            stop()


if __name__ == "__main__":
    cli.command(main)
