"""The paper's claims, checked on a laptop: the runs, what they say, and the pictures.

    python -m experiments.run --claim 1 --seeds 1    one seed of one claim's runs
    python -m experiments.run --arm coupled --seeds 1    one arm, beside the published seeds
    python -m experiments.run                        every claim, five seeds: hours of two cores
    python -m experiments.run --develop              learning rates, on seeds of their own
    python -m experiments.run --draw                 figures and tables, from the published runs

What is done is skipped, what was stopped goes on. What the claims are, and what decides:
registry.py. A row of runs.jsonl is what is kept of one run.

Test: `pytest tests/test_experiments.py`. Read next: trained.py.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

from tqdm import tqdm

from experiments import arithmetic, registry, shapley
from experiments.claims import Study, draw, final, interval, page, read, short_table
from experiments.registry import (
    ARMS,
    CLAIMS,
    COMMON,
    DERIVED,
    DEVELOPMENT,
    DEVELOPMENT_SEEDS,
    PRICED,
    PRICES,
    TEMPERATURES,
)
from lib import cli
from lib.cli import ROOT, log
from lib.errors import UserError
from lib.files import atomic_write, read_jsonl
from lib.metrics import start_of
from lib.prices import name_at

README = ROOT / "experiments" / "README.md"
STUDIES = registry.STUDY, arithmetic.STUDY
PUBLISHED = registry.STUDY.folder / "runs.jsonl"
DEVELOPED = registry.STUDY.folder / "development.jsonl"
FLAGS = ARMS | DEVELOPMENT
ENVIRONMENT = os.environ | {
    # One thread each, so that two runs share two cores and a rerun is bit for bit the same.
    "OMP_NUM_THREADS": "1",
    # Also on another CPU: with wider vectors sums are rounded in another order.
    "ATEN_CPU_CAPABILITY": "avx2",
}


# ------------------------------------------------------------------------------------------- a run


def run(arm: str, seed: int, folder: pathlib.Path) -> dict:
    """Train one arm with one seed, or go on with it, and return its row.

    Raises UserError with train.py's own line.
    """
    if arm in DERIVED:
        measure = {"trained": trained, "voted": voted, "priced": priced}[arm]
        return {"arm": arm, "seed": seed, **measure(seed, folder)}
    out = place(arm, seed, folder)
    return summary(arm, seed, train(out, f"{COMMON} {FLAGS[arm]}", seed))


def train(out: pathlib.Path, flags: str, seed: int) -> list[dict]:
    """The metrics of a training with these flags, which is done, or goes on, unless complete."""
    # The training holds the lock, too: one that outlives this program is waited for.
    with locked(out) as lock:
        if not is_complete(out):
            resume = ["--resume"] if (out / "config.json").exists() else []
            given = [] if resume else shlex.split(flags)
            build_model(flags)
            execute(["train.py", *given, "--seed", seed, "--out", out, *resume], lock.fileno())
    rows = read_jsonl(out / "metrics.jsonl")
    num_spoiled = spoiled(rows)
    if num_spoiled:
        log.info(f"{out}: {num_spoiled} executions failed or timed out; was the machine busy?")
    return rows


def build_model(flags: str) -> None:
    """Build the model that the flags name, in half an hour, where it is not there."""
    for name, how in registry.MODELS.items():
        model = ROOT / name
        if name not in flags:
            continue
        with locked(model) as lock:
            if not (model / "config.json").exists():
                execute(["-m", "tiny.build", *how.split(), "--out", model], lock.fileno())


@contextlib.contextmanager
def locked(path: pathlib.Path):
    """An open file that one process at a time has: what starts with it keeps it, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def is_complete(out: pathlib.Path) -> bool:
    """Whether the training in this folder has had its last evaluation."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return False
    rows = read_jsonl(path, only_complete_lines=True)
    return len(rows) > 1 and "eval_fixed" in rows[-1]


def spoiled(rows: list[dict]) -> int:
    """Executions of a training that a busy machine may have spoiled."""
    return sum(row["infra_errors"] + row["statuses"].get("timeout", 0) for row in rows)


# Trainings and evaluations: when this program ends, they do.
RUNNING: set[subprocess.Popen] = set()
STOPPED = threading.Event()
LOCK = threading.Lock()


def execute(command: list, *descriptors: int) -> None:
    """Run a program of the project. Raises UserError with its last line."""
    command = [str(word) for word in command]
    with LOCK:
        if STOPPED.is_set():
            raise UserError("stopped")
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
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
        raise UserError(f"{shlex.join(command)}: {last_line}")


def stop() -> None:
    with LOCK:
        STOPPED.set()
        for process in set(RUNNING):
            process.terminate()


def place(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{re.sub('[^a-z0-9]+', '-', arm)}-{seed}"


def model(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
    return place(arm, seed, folder) / "checkpoint"


def needs(arm: str, seed: int, folder: pathlib.Path) -> list[tuple[str, int]]:
    """The runs whose models a derived arm measures, where they are not in `folder`."""
    others = DERIVED.get(arm, ())
    return [(other, seed) for other in others if not is_complete(place(other, seed, folder))]


# ----------------------------------------------------------------- what begins with trained models


def trained(seed: int, folder: pathlib.Path) -> dict:
    """What trained.py says of the stagewise run."""
    out = place("stagewise", seed, folder) / "trained.json"
    stagewise = ["--model", model("stagewise", seed, folder), "--seed", seed]
    execute(["-m", "experiments.trained", *stagewise, "--out", out])
    return json.loads(out.read_text())


def voted(seed: int, folder: pathlib.Path) -> dict:
    """Own designs and votes at equal tokens: of the stagewise run's weights, and of those of the
    trained agent with the tool."""
    own = evaluate(
        place("stagewise", seed, folder) / "voted",
        *("--modes", "metaagent,self-consistency,self-consistency+python"),
        *("--model", model("stagewise", seed, folder), "--seed", seed),
    )
    agent = evaluate(
        place("coder agent", seed, folder) / "voted",
        *("--modes", "self-consistency+python", "--vote-tokens", own["metaagent"]["tokens"]),
        *("--model", model("coder agent", seed, folder), "--seed", seed),
    )
    results = {
        "own": own["metaagent"],
        "votes": own["self-consistency"],
        "votes with the tool": own["self-consistency+python"],
        "votes of the agent": agent["self-consistency+python"],
    }
    row = {name: result["accuracy"] for name, result in results.items()}
    for cost in ("tokens", "prompt_tokens"):
        row[cost] = {name: result[cost] for name, result in results.items()}
    return row


def priced(seed: int, folder: pathlib.Path) -> dict:
    """The designer of the stagewise run, trained further with prices: its front."""
    out = place("priced", seed, folder)
    train(out, f"{PRICED} --model {shlex.quote(str(model('stagewise', seed, folder)))}", seed)
    row = {"flags": f"{PRICED} --seed {seed}"}
    for temperature, name in TEMPERATURES.items():
        results = evaluate(
            out / f"front-{temperature}",
            *("--modes", "metaagent", "--prices", ",".join(map(str, PRICES))),
            *("--temperature", temperature, "--model", out / "checkpoint", "--seed", seed),
        )
        row[name] = {}
        for price in PRICES:
            result = results[name_at(price)]
            row[name][str(price)] = {key: result[key] for key in ("accuracy", "tokens", "calls")}
    return row


def evaluate(out: pathlib.Path, *arguments) -> dict:
    """Results by mode, of two answers to held-out questions, with the training's limits."""
    limits = ["--design-tokens", 96, "--reply-tokens", 24, "--max-calls", 12]
    sets = ["--tasks", "registry", "--limit", 100, "--samples", 2]
    execute(["eval.py", *sets, *limits, *arguments, "--out", out])
    results = json.loads((out / "results.json").read_text())["results"]
    num_failed = sum(result["infra_errors"] for result in results)
    if num_failed:
        raise UserError(f"{out}: {num_failed} answers failed; the same command asks again")
    return {result["mode"].split(" (")[0]: result for result in results}


# ------------------------------------------------------------------------------------- what is kept


def summary(arm: str, seed: int, rows: list[dict]) -> dict:
    """What is kept of a run.

    evals: [updates done, tokens sampled in training until then, held-out accuracy at temperature 1,
    at temperature 0].
    """
    first = rows[0]
    start = start_of(first)
    evals = [[0, 0, start["eval_accuracy"], start["eval_greedy"]]]
    tokens = 0
    for row in rows:
        tokens += row["tokens"]
        if "eval_accuracy" in row and row["step"] > 0:
            evals.append([row["step"] + 1, tokens, row["eval_accuracy"], row["eval_greedy"]])
    return {
        "arm": arm,
        "seed": seed,
        "flags": " ".join(f"{COMMON} {FLAGS[arm]} --seed {seed}".split()),
        "evals": evals,
        "before": evaluation_of(first),
        "after": evaluation_of(rows[-1]),
        "rewards": [round(row["reward"], 4) for row in rows],
        "seconds": round(sum(row["seconds"] for row in rows)),
    }


def evaluation_of(row: dict) -> dict:
    return {key: value for key, value in row.items() if key.startswith("eval_")}


def publish(study: Study, results: dict, folder: pathlib.Path) -> None:
    """Figures and tables of `results`, into their folder and, for the published ones, README.md."""
    draw(study, results, folder)
    atomic_write(folder / "table.md", page(study, results) + "\n")
    if folder == registry.STUDY.folder:
        fill(README, "claims", page(study, results))
        fill(README, "rates", registry.rates(read(DEVELOPED)))
        fill(README, "two worlds", registry.two_worlds(results))
        fill(README, "shapley", shapley.table(shapley.published()))
        fill(ROOT / "README.md", "claims", short_table(study, results))
        fill(ROOT / "README.md", "result", registry.before_and_after(results))
        fill(ROOT / "README.md", "new shapes", registry.new_designs(results))


def fill(path: pathlib.Path, name: str, text: str) -> None:
    """Replace what stands between two marks of a Markdown file."""
    before, rest = path.read_text().split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    atomic_write(path, f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}")


def compare(rows: dict) -> str:
    """New runs beside the published ones: in or out of their 95 % prediction interval."""
    published, column = read(PUBLISHED), registry.STUDY.column
    lines = []
    for (arm, seed), row in sorted(rows.items()):
        others = [other for (name, _), other in published.items() if name == arm]
        if arm in DERIVED or len(others) < 2:
            continue
        finals = [final(other, column=column) for other in others]
        mean, low, high = interval(finals)
        # Of one run, where `interval` is of the mean of all.
        half = (high - mean) * (len(finals) + 1) ** 0.5
        score = final(row, column=column)
        expected = "as expected" if abs(score - mean) <= half else "NOT as expected"
        lines.append(
            f"{arm}, seed {seed}: final {score:.3f}, {expected} ({mean - half:.3f} to "
            f"{mean + half:.3f}, by {len(finals)} published seeds, mean {mean:.3f})"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- start


@dataclass(frozen=True)
class Config:
    claim: int = 0  # claim to check, by its number; 0: all
    arm: str = ""  # one arm instead: stagewise, coupled ...
    seeds: int = 5  # number of seeds of every arm: 0, 1, ...
    results: str = "runs/experiments"  # folder of runs.jsonl, figures and tables
    workers: int = 0  # trainings at the same time, one thread each; 0: one for each core
    develop: bool = False  # learning rates instead, on seeds that no comparison has
    draw: bool = False  # run nothing: draw the published results of both studies again


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Check the paper's claims on the tiny model.")
    if config.claim not in (0, *CLAIMS):
        raise UserError(f"--claim {config.claim}: one of {[*CLAIMS]}, or 0 for all")
    if config.arm not in ("", *ARMS, *DERIVED):
        raise UserError(f"--arm {config.arm!r}: one of {', '.join([*ARMS, *DERIVED])}")
    if not 1 <= config.seeds <= 10 or config.workers < 0:
        raise UserError(f"--seeds {config.seeds} --workers {config.workers}: 1 to 10, 0 or more")
    if config.draw:
        for study in STUDIES:
            publish(study, read(study.folder / "runs.jsonl"), study.folder)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = pathlib.Path(config.results).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arms = [config.arm] if config.arm else arms_of(config.claim)
    seeds = range(config.seeds)
    path = folder / "runs.jsonl"
    if config.develop:
        arms = [*DEVELOPMENT]
        seeds = DEVELOPMENT_SEEDS
        path = folder / "development.jsonl"
    done = read(path)
    todo = [(arm, seed) for seed in seeds for arm in arms if (arm, seed) not in done]
    log.info(f"{len(arms)} arms, {len(seeds)} seeds: {len(todo)} runs to do")

    runs = ROOT / "runs" / "experiments"
    derived = [item for item in todo if item[0] in DERIVED]
    trainings = [item for item in todo if item not in derived]
    for arm, seed in derived:
        trainings += needs(arm, seed, runs)
    # The trainings before what is measured on them.
    for items in (list(dict.fromkeys(trainings)), derived):
        run_all(items, runs, done, path, config.workers or os.cpu_count())

    results = read(path)
    if config.develop:
        log.info(registry.rates(results))
        return
    publish(registry.STUDY, results, folder)
    chosen = {
        (arm, seed): row
        for (arm, seed), row in results.items()
        if arm in arms and seed < config.seeds
    }
    log.info(compare(chosen))
    log.info(page(registry.STUDY, chosen))


def arms_of(claim: int) -> list[str]:
    """The arms of a claim, or of all."""
    if not claim:
        return [*ARMS, *DERIVED]
    return CLAIMS[claim].arms


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
                    column = registry.STUDY.column
                    change = f": {row['evals'][0][column]:.3f} -> {final(row, column=column):.3f}"
                log.info(f"{row['arm']}, seed {row['seed']}{change}")
        finally:  # stopped, or one failed: the others are stopped too, and go on next time
            pool.shutdown(wait=False, cancel_futures=True)
            stop()


if __name__ == "__main__":
    cli.command(main)
