"""The paper's claims, checked on a laptop: the runs, what they say, and the pictures.

    python experiments.py --claim 1 --seeds 1      one seed of one claim's runs, and how they compare with the published ones
    python experiments.py                          every claim, five seeds: hours of two cores; what is done is skipped, what was stopped goes on
    python experiments.py --draw                   the figures and the README's table again, from results/runs.jsonl

What the claims are, and what decides: claims.py. A row of runs.jsonl is what is kept of one run.
Test: `pytest tests/test_experiments.py`. Read next: the tests.
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

import cli
from claims import ARMS, CLAIMS, CROSSED, DERIVED, SAMPLED, draw, final, interval, page, read
from cli import HERE, log
from tasks import BadInput

PUBLISHED = HERE / "results" / "runs.jsonl"
COMMON = "--eval-every 10 --threads 1"  # one thread each, so that two runs share two cores and a rerun is bit for bit the same
ENVIRONMENT = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}  # also on another CPU: with wider vectors sums are rounded in another order


# ---------------------------------------------------------------------------------------------------------------- a run

def run(arm: str, seed: int, folder: pathlib.Path) -> dict:
    """Train one arm with one seed, or go on with it, and return its row. Raises BadInput with train.py's own line."""
    if arm in DERIVED:
        return {"arm": arm, "seed": seed, **{"crossed": crossed, "variance": variance, "voted": voted}[arm](seed, folder)}
    out = place(arm, seed, folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "train.py"), *shlex.split(f"{COMMON} {ARMS[arm]}"), "--seed", str(seed), "--out", str(out)]
    with open(out.with_suffix(".lock"), "w") as lock:  # the training holds it too: one that outlives this program is waited for
        fcntl.flock(lock, fcntl.LOCK_EX)
        execute(command + ["--resume"] * (out / "config.json").exists(), lock.fileno())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if count := spoiled(rows):
        log.info(f"{out}: {count} executions failed in the infrastructure or timed out; was the machine busy?")
    return summary(arm, seed, rows)


def spoiled(rows: list[dict]) -> int:
    """Executions of a training that a busy machine may have spoiled."""
    return sum(row["infrastructure"] + row["statuses"].get("timeout", 0) for row in rows)


RUNNING, STOPPED, LOCK = set(), threading.Event(), threading.Lock()  # trainings and evaluations: when this program ends, they do


def execute(command: list[str], *descriptors: int) -> None:
    with LOCK:
        if STOPPED.is_set():
            raise BadInput("stopped")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=descriptors, env=ENVIRONMENT)
        RUNNING.add(process)
    said = process.communicate()[1]
    RUNNING.discard(process)
    if process.returncode:
        raise BadInput(f"{shlex.join(command[1:])}: {(said.strip().splitlines() or ['killed'])[-1]}")


def stop() -> None:
    with LOCK:
        STOPPED.set()
        for process in set(RUNNING):
            process.terminate()


def place(arm: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{re.sub('[^a-z0-9]+', '-', arm)}-{seed}"


def model(arm: str, seed: int, step: int, folder: pathlib.Path) -> str:
    """The model of a run after `step` steps; of step 0 it is the start of all."""
    return str(place(arm, seed, folder) / "steps" / str(step)) if step else "tiny"


def needs(arm: str, seed: int, folder: pathlib.Path) -> list:
    """The runs whose models a derived arm measures, where they are not in `folder` (their rows may come from elsewhere)."""
    wanted = {"crossed": [("stagewise", 50), ("stagewise", 100)], "variance": [("stagewise", 100)], "voted": [("stagewise", 100), ("single agent", 500)]}
    return [(other, seed) for other, step in wanted.get(arm, ()) if not pathlib.Path(model(other, seed, step, folder)).exists()]


def finished(out: pathlib.Path) -> bool:
    """Whether a training has done all its steps."""
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    return bool(lines) and len(lines) == json.loads((out / "config.json").read_text())["steps"]


def evaluate(flags: str, out: pathlib.Path, *more) -> dict:
    """Accuracy by mode, of held-out questions, with the training's limits."""
    flags = f"--tasks arithmetic --limit 100 --design-tokens 96 --reply-tokens 48 --max-calls 8 --threads 1 {flags}"
    execute([sys.executable, str(HERE / "eval.py"), *flags.split(), *more, "--out", str(out)])
    rows = {row["mode"].split(" (")[0]: row for row in json.loads((out / "results.json").read_text())["results"]}
    if count := sum(row["infrastructure"] for row in rows.values()):
        raise BadInput(f"{out}: {count} answers failed in the infrastructure; the same command asks for them again")
    return rows


def crossed(seed: int, folder: pathlib.Path) -> dict:
    """Held-out accuracy with the designer of one step and the executor of another, two answers a question: matrix[designer][executor]."""
    matrix = {str(designer): {} for designer in CROSSED}
    for designer, executor in itertools.product(CROSSED, CROSSED):
        pair = ("--designer", model("stagewise", seed, designer, folder), "--model", model("stagewise", seed, executor, folder))
        rows = evaluate(f"--modes metaagent --samples 2 --seed {seed}", place("stagewise", seed, folder) / "crossed" / f"{designer}-{executor}", *pair)
        matrix[str(designer)][str(executor)] = rows["metaagent"]["accuracy"]
    return {"matrix": matrix}


def variance(seed: int, folder: pathlib.Path) -> dict:
    """The reward's variance between and within designs, of SAMPLED x SAMPLED executions of 24 training questions, before and after training.
    Two questions at a time, in steps that do not move the weights."""
    steps = {}
    for step in (0, 100):
        out = place("stagewise", seed, folder) / f"variance-{step}"
        shutil.rmtree(out, ignore_errors=True)
        flags = f"--steps 12 --questions 2 --designs {SAMPLED} --executions {SAMPLED} --lr 1e-12 --anchor 0 --no-eval-fixed --eval-size 1 --eval-every 0 --threads 1 --seed {seed}"
        execute([sys.executable, str(HERE / "train.py"), *flags.split(), "--model", model("stagewise", seed, step, folder), "--out", str(out)])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        if count := spoiled(rows):
            raise BadInput(f"{out}: {count} executions failed in the infrastructure or timed out; is the machine busy?")
        steps[str(step)] = {key: statistics.fmean(row[f"variance_{key}_designs"] for row in rows) for key in ("between", "within")}
    return {"steps": steps}


def voted(seed: int, folder: pathlib.Path) -> dict:
    """Own designs and self-consistency at equal tokens: the stagewise run's weights, and those of the trained single agent."""
    own = evaluate(f"--modes metaagent,self-consistency --samples 2 --seed {seed}", place("stagewise", seed, folder) / "voted", "--model", model("stagewise", seed, 100, folder))
    single = evaluate(f"--modes self-consistency --samples 2 --seed {seed} --vote-tokens {own['metaagent']['tokens']}", place("single agent", seed, folder) / "voted",
                      "--model", model("single agent", seed, 500, folder))
    return {"metaagent": own["metaagent"]["accuracy"], "self_consistency": own["self-consistency"]["accuracy"], "single_self_consistency": single["self-consistency"]["accuracy"],
            "tokens": {"metaagent": own["metaagent"]["tokens"], "self_consistency": own["self-consistency"]["tokens"], "single_self_consistency": single["self-consistency"]["tokens"]}}


def summary(arm: str, seed: int, rows: list[dict]) -> dict:
    """What is kept of a run. evals: [updates done, tokens sampled in training until then, held-out accuracy]."""
    evals, tokens = [[0, 0, rows[0].get("eval_before", rows[0]["eval_accuracy"])]], 0
    for row in rows:
        tokens += row["tokens"]
        if "eval_accuracy" in row and row["step"] > 0:
            evals.append([row["step"] + 1, tokens, row["eval_accuracy"]])
    return {"arm": arm, "seed": seed, "flags": f"{COMMON} {ARMS[arm]} --seed {seed}".replace("  ", " "), "evals": evals,
            "before": {key: rows[0][key] for key in ("eval_families", "eval_fixed", "eval_fixed_families")},
            "after": {key: rows[-1][key] for key in ("eval_families", "eval_fixed", "eval_fixed_families")},
            "variance": {key: statistics.fmean(row[f"variance_{key}_designs"] for row in rows) for key in ("between", "within")},
            "seconds": round(sum(row["seconds"] for row in rows))}


def publish(results: dict, folder: pathlib.Path) -> None:
    """Figures and tables of `results`, into their folder and, for the committed ones, the README."""
    draw(results, folder)
    cli.atomic_write(folder / "table.md", page(results) + "\n")
    if folder == PUBLISHED.parent:
        readme = (HERE / "README.md").read_text()
        before, rest = readme.split("<!-- claims -->\n")[0], readme.split("<!-- /claims -->")[1]
        cli.atomic_write(HERE / "README.md", f"{before}<!-- claims -->\n{page(results)}\n<!-- /claims -->{rest}")


def compare(rows: dict) -> str:
    """New runs beside the published ones: identical, or in or out of the 95 % prediction interval of the published seeds."""
    published, lines = read(PUBLISHED), []
    for (arm, seed), row in sorted(rows.items()):
        known = [final(other) for (name, _), other in published.items() if name == arm and "evals" in other]
        if len(known) > 1:
            mean, low, high = interval(known)
            half = (high - mean) * (len(known) + 1) ** 0.5  # of one run, where `interval` is of the mean of all
            same = (arm, seed) in published and published[arm, seed]["evals"] == row["evals"]
            said = "the same run as published" if same else f"{'as' if abs(final(row) - mean) <= half else 'NOT as'} expected of another run, {mean - half:.3f} to {mean + half:.3f}"
            lines.append(f"{arm}, seed {seed}: final {final(row):.3f}, {said}; published {mean:.3f} ({low:.3f} to {high:.3f}, {len(known)} seeds)")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- start

@dataclass(frozen=True)
class Config:
    claim: int = 0
    """Of which claim: 1 to 8; 0 is all of them."""
    seeds: int = 5
    """Seeds 0 to S - 1 of every arm."""
    results: str = "runs/experiments"
    """Folder of runs.jsonl, figures and table. `results` holds the published ones."""
    workers: int = 0
    """Trainings at the same time, one thread each; 0 is one for each core."""
    draw: bool = False
    """Run nothing: draw the published results again."""


def main(argv) -> None:
    config = cli.flags(Config, argv, "Check the paper's claims on the tiny model.")
    if config.claim not in (0, *CLAIMS) or not 1 <= config.seeds <= 10 or config.workers < 0:
        raise BadInput(f"--claim {config.claim} --seeds {config.seeds}: claims are {', '.join(map(str, CLAIMS))} (0: all), seeds 1 to 10, workers 0 or more")
    if config.draw:
        if not PUBLISHED.exists():
            raise BadInput(f"--draw: no published results ({PUBLISHED})")
        return publish(read(PUBLISHED), PUBLISHED.parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = pathlib.Path(config.results).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    done, arms = read(folder / "runs.jsonl"), dict.fromkeys(arm for number, claim in CLAIMS.items() if config.claim in (0, number) for arm in claim.arms)
    todo = [(arm, seed) for seed in range(config.seeds) for arm in arms if (arm, seed) not in done]
    log.info(f"{len(arms)} arms, {config.seeds} seeds: {len(todo)} runs to do, {len(arms) * config.seeds - len(todo)} done; about eight minutes each, side by side")
    runs = HERE / "runs" / "experiments"
    derived = [one for one in todo if one[0] in DERIVED]
    for arm, seed in {run for one in derived for run in needs(*one, runs)}:
        if finished(place(arm, seed, runs)):  # without the models that are needed now
            shutil.rmtree(place(arm, seed, runs))
    trainings = [one for one in todo if one not in derived] + [run for one in derived for run in needs(*one, runs)]
    for part in (dict.fromkeys(trainings), derived):  # the trainings before what is made of them
        STOPPED.clear()
        with concurrent.futures.ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
            try:
                waiting = [pool.submit(run, arm, seed, runs) for arm, seed in part]
                for future in tqdm(concurrent.futures.as_completed(waiting), "runs", len(waiting), disable=None):
                    row = future.result()
                    if (row["arm"], row["seed"]) in done:
                        continue
                    with open(folder / "runs.jsonl", "a") as file:
                        file.write(json.dumps(row) + "\n")
                    log.info(f"{row['arm']}, seed {row['seed']}" + (f": {row['evals'][0][2]:.3f} -> {final(row):.3f} in {row['seconds']} s" if "evals" in row else ""))
            finally:  # stopped, or one failed: the others are stopped too, and go on next time
                pool.shutdown(wait=False, cancel_futures=True)
                stop()
    results = {key: row for key, row in read(folder / "runs.jsonl").items() if key[0] in arms and key[1] < config.seeds}
    publish(read(folder / "runs.jsonl"), folder)
    log.info(compare(results))
    log.info(page(results))


if __name__ == "__main__":
    cli.command(main)
