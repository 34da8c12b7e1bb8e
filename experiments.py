"""The paper's claims, checked on a laptop: the runs, what they say, and the pictures.

    python experiments.py --claim 1 --seeds 1      one seed of one claim's runs, and how they compare with the published ones
    python experiments.py                          every claim, five seeds: days of two cores; what is done is skipped, what was stopped goes on
    python experiments.py --draw                   the figures and the README's table again, from results/runs.jsonl

An *arm* is a training with some flags changed; arms of one seed see the same questions and begin with the same weights, so that they are compared in
pairs. A claim is a list of comparisons, each with a direction; the mean of the paired differences and its 95 % interval (t, over seeds) decide:
holds, does not (the interval lies on the other side of 0), can't be told. The plan was in LOG.md before the first run.

Scores are held-out accuracy of the model's own designs: *final* is the mean of the last three evaluations (every 10 steps), *best* the highest. Where
arms sample different numbers of tokens, both are read at 80, 90 and 100 % of what the thriftier arm of the pair used up.
Test: `pytest tests/test_experiments.py`. Read next: the tests.
"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass

import numpy

import cli
from cli import HERE, log
from tasks import BadInput

PUBLISHED = HERE / "results" / "runs.jsonl"
COMMON = "--eval-every 10 --threads 1"  # one thread each, so that two runs share two cores and a rerun is bit for bit the same
CROSSED = (0, 50, 100)  # steps of the stagewise run whose designers and executors are paired
ARMS = {
    "stagewise": "--keep-every 50",
    "designer": "--stage designer",
    "executor": "--stage executor",
    "coupled": "--stage both",
    "phases of 1": "--phase-steps 1",
    "phases of 30": "--phase-steps 30",
    "16 x 1": "--designs 16 --executions 1",
    "4 x 4": "--designs 4 --executions 4",
    "2 x 8": "--designs 2 --executions 8",
    "1 x 16": "--designs 1 --executions 16",
    "groups by design": "--executor-group design",
    "no anchor": "--anchor 0",
}  # and "crossed": no training, but evaluations of the stagewise run's models
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided 95 %, for 1 to 9 degrees of freedom


# ---------------------------------------------------------------------------------------------------------------- a run

def run(arm: str, seed: int, folder: pathlib.Path) -> dict:
    """Train one arm with one seed, or go on with it, and return its row. Raises BadInput with train.py's own line."""
    if arm == "crossed":
        return crossed(seed, folder)
    out = folder / f"{arm.replace(' ', '-')}-{seed}"
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, str(HERE / "train.py"), *shlex.split(f"{COMMON} {ARMS[arm]}"), "--seed", str(seed), "--out", str(out), *resume]
    execute(command)
    return summary(arm, seed, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])


RUNNING = set()  # trainings and evaluations: when this program ends, they do


def execute(command: list[str]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    RUNNING.add(process)
    said = process.communicate()[1]
    RUNNING.discard(process)
    if process.returncode:
        raise BadInput(f"{shlex.join(command[1:])}: {(said.strip().splitlines() or ['killed'])[-1]}")


def crossed(seed: int, folder: pathlib.Path) -> dict:
    """Held-out accuracy with the designer of one step and the executor of another, two answers a question: matrix[designer][executor]."""
    steps = folder / f"stagewise-{seed}" / "steps"
    if not all((steps / str(step)).exists() for step in CROSSED if step):  # trained elsewhere, or without keeping them
        shutil.rmtree(steps.parent, ignore_errors=True)
        run("stagewise", seed, folder)
    models = {step: str(steps / str(step)) if step else "tiny" for step in CROSSED}
    flags = f"--tasks arithmetic --modes metaagent --samples 2 --limit 100 --design-tokens 96 --reply-tokens 48 --max-calls 8 --threads 1 --seed {seed}"
    matrix = {designer: {} for designer in CROSSED}
    for designer in CROSSED:
        for executor in CROSSED:
            out = folder / f"crossed-{seed}" / f"{designer}-{executor}"
            execute([sys.executable, str(HERE / "eval.py"), *flags.split(), "--designer", models[designer], "--model", models[executor], "--out", str(out)])
            matrix[designer][executor] = json.loads((out / "results.json").read_text())["results"][0]["accuracy"]
    return {"arm": "crossed", "seed": seed, "flags": flags, "matrix": {str(key): {str(step): value for step, value in part.items()} for key, part in matrix.items()}}


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


def read(path: pathlib.Path) -> dict:
    """{(arm, seed): row} of a file of results."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["arm"], row["seed"]): row for row in rows}


# ------------------------------------------------------------------------------------------------------------ the numbers

def final(row, tokens: float | None = None) -> float:
    """Mean of the last three evaluations; or of what lies, on straight lines between evaluations, at 80, 90 and 100 % of `tokens`."""
    if tokens is None:
        return statistics.fmean(accuracy for *_, accuracy in row["evals"][-3:])
    return statistics.fmean(numpy.interp([0.8 * tokens, 0.9 * tokens, tokens], [used for _, used, _ in row["evals"]], [accuracy for *_, accuracy in row["evals"]]).tolist())


def best(row) -> float:
    return max(accuracy for *_, accuracy in row["evals"])


def collapsed(row) -> float:
    """1.0 if the run ended below half of its best."""
    return float(final(row) < best(row) / 2)


def weights(part) -> dict:
    """The share of each family in an evaluation."""
    counts = {family: sum(found["designs"].values()) for family, found in part["eval_families"].items()}
    return {family: count / sum(counts.values()) for family, count in counts.items()}


def oracle(part) -> float:
    """Accuracy if each family got its best hand-written design, chosen in hindsight on the same answers (which flatters it)."""
    return sum(share * max(scores[family] for scores in part["eval_fixed_families"].values()) for family, share in weights(part).items())


def best_fixed(part) -> float:
    return max(part["eval_fixed"].values())


def own(part) -> float:
    return sum(share * part["eval_families"][family]["accuracy"] for family, share in weights(part).items())


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences over seeds (Student's t).

    >>> [round(x, 3) for x in interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    half = T95[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """One number of a claim: of each seed a difference, which the claim says is above 0."""
    what: str
    arms: tuple[str, ...]
    difference: object  # (row of each arm) -> float

    def over_seeds(self, results: dict, seeds) -> list[float]:
        return [self.difference(*(results[arm, seed] for arm in self.arms)) for seed in seeds if all((arm, seed) in results for arm in self.arms)]


def against(one: str, other: str) -> Comparison:
    """Final score of an arm minus another's, at equal tokens."""
    def difference(a, b):
        tokens = min(a["evals"][-1][1], b["evals"][-1][1])
        return final(a, tokens) - final(b, tokens)

    return Comparison(f"{one} - {other}", (one, other), difference)


def cell(what: str, one, other) -> Comparison:
    """A cell (designer's step, executor's step) of the crossed evaluation minus another."""
    return Comparison(what, ("crossed",), lambda row: row["matrix"][str(one[0])][str(one[1])] - row["matrix"][str(other[0])][str(other[1])])


@dataclass(frozen=True)
class Claim:
    title: str
    paper: str
    comparisons: tuple[Comparison, ...]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for comparison in self.comparisons for arm in comparison.arms))


CLAIMS = {
    1: Claim("Frozen-executor ceiling: training both goes beyond what training the designer can reach", "44.8 against 38.6 (math average)", (
        against("stagewise", "designer"),
        Comparison("stagewise - the oracle of the start's executor", ("stagewise",), lambda row: final(row) - oracle(row["before"])),
        Comparison("that oracle - designer", ("designer",), lambda row: oracle(row["before"]) - final(row)))),
    2: Claim("Both roles improve throughout", "the paper's cross-evaluation", (
        cell("designer of the end - of the start, executor of the start", (100, 0), (0, 0)), cell("executor of the end - of the start, designer of the start", (0, 100), (0, 0)),
        cell("designer of the end - of the start, executor of the end", (100, 100), (0, 100)), cell("executor of the end - of the start, designer of the end", (100, 100), (100, 0)),
        cell("designer of the end - of the middle, executor of the end", (100, 100), (50, 100)), cell("executor of the end - of the middle, designer of the end", (100, 100), (100, 50)))),
    3: Claim("Stagewise beats coupled and single-role training", "44.8 against 36.7, 38.6 and 39.6 (math average); K = 30 best, 1 collapses", (
        against("stagewise", "coupled"), against("stagewise", "executor"), against("stagewise", "phases of 1"), against("stagewise", "phases of 30"),
        against("stagewise", "no anchor"))),
    4: Claim("Hierarchical rollouts: several executions of each design", "M=4, N=4 against M=8, N=1: 40.0 against 33.3 (AIME24)", (
        against("stagewise", "16 x 1"), against("4 x 4", "16 x 1"), against("stagewise", "2 x 8"), against("stagewise", "1 x 16"),)),
    5: Claim("Role-aware credit: executions are compared within the question", "the paper's choice", (against("stagewise", "groups by design"),)),
    6: Claim("Structure adapts to the task", "18.9 / 70.0 / 11.1 % single / reflection / ensemble on AIME24, 55.2 / 43.8 / 1.0 % on APPS", (
        Comparison("own designs - best fixed design, same weights", ("stagewise",), lambda row: own(row["after"]) - best_fixed(row["after"])),
        Comparison("own designs - oracle by family, same weights", ("stagewise",), lambda row: own(row["after"]) - oracle(row["after"])))),
}


def verdict(low: float, high: float) -> str:
    return "holds" if low > 0 else "does not" if high < 0 else "can't be told"


def table(results: dict) -> str:
    """The README's table, of all claims that have runs."""
    seeds = sorted({seed for _, seed in results})
    lines = ["| claim | the paper | ours: mean difference (95 % interval, seeds) | verdict |", "|---|---|---|---|"]
    for number, claim in CLAIMS.items():
        decided = [(comparison, found) for comparison in claim.comparisons if len(found := comparison.over_seeds(results, seeds)) > 1]
        for comparison, found in decided:
            mean, low, high = interval(found)
            first = (f"{number}. {claim.title}", claim.paper) if comparison is decided[0][0] else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {comparison.what}: {mean:+.3f} ({low:+.3f} to {high:+.3f}, {len(found)}) | {verdict(low, high)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the pictures

def draw(results: dict, folder: pathlib.Path) -> None:
    """One figure a claim: held-out accuracy over training of its arms, every seed faint, the mean bold; for claim 6 the accuracies side by side."""
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "metaagent", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt
    for number, claim in CLAIMS.items():
        arms = {arm: [row for (name, _), row in sorted(results.items()) if name == arm] for arm in claim.arms}
        arms = {arm: rows for arm, rows in arms.items() if rows}
        if not arms:
            continue
        figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
        {2: matrix, 6: side_by_side}.get(number, curves)(axis, arms)
        axis.set_title(f"{number}. {claim.title}", fontsize=9, wrap=True)
        figure.savefig(folder / f"claim-{number}.svg", metadata={"Date": None})
        plt.close(figure)


def curves(axis, arms):
    for colour, (arm, rows) in zip((f"C{i}" for i in range(10)), arms.items()):
        for row in rows:
            axis.plot([step for step, *_ in row["evals"]], [accuracy for *_, accuracy in row["evals"]], color=colour, alpha=0.2, linewidth=0.8)
        steps = [step for step, *_ in rows[0]["evals"]]
        means = [statistics.fmean(row["evals"][i][2] for row in rows if i < len(row["evals"])) for i in range(len(steps))]
        axis.plot(steps, means, color=colour, linewidth=2.2, label=f"{arm} ({len(rows)})")
    level = statistics.fmean(oracle(row["before"]) for rows in arms.values() for row in rows)
    axis.axhline(level, color="grey", linestyle=":", label="best fixed design by family, before training")
    axis.set(xlabel="step", ylabel="held-out accuracy of own designs", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def matrix(axis, arms):
    rows = arms["crossed"]
    values = [[statistics.fmean(row["matrix"][str(designer)][str(executor)] for row in rows) for executor in CROSSED] for designer in CROSSED]
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axis.set(xlabel="executor after so many steps", ylabel=f"designer after so many steps ({len(rows)} seeds)", xticks=range(len(CROSSED)), yticks=range(len(CROSSED)),
             xticklabels=CROSSED, yticklabels=CROSSED)


def side_by_side(axis, arms):
    rows = arms["stagewise"]
    names = [*rows[0]["after"]["eval_fixed"], "oracle", "own designs"]
    values = [[row["after"]["eval_fixed"][name] for row in rows] for name in names[:-2]] + [[oracle(row["after"]) for row in rows], [own(row["after"]) for row in rows]]
    axis.bar(names, [statistics.fmean(value) for value in values], color=["C7"] * (len(names) - 2) + ["C1", "C0"], alpha=0.7)
    for x, value in enumerate(values):
        axis.plot([x] * len(value), value, "k.", markersize=4)
    axis.set(ylabel="held-out accuracy, same weights, after training", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def publish(results: dict, folder: pathlib.Path) -> None:
    """Figures and table of `results`, into their folder and, for the committed ones, the README."""
    draw(results, folder)
    cli.atomic_write(folder / "table.md", table(results) + "\n")
    if folder == PUBLISHED.parent:
        readme = (HERE / "README.md").read_text()
        before, rest = readme.split("<!-- claims -->\n")[0], readme.split("<!-- /claims -->")[1]
        cli.atomic_write(HERE / "README.md", f"{before}<!-- claims -->\n{table(results)}\n<!-- /claims -->{rest}")


def compare(rows: dict) -> str:
    """New runs beside the published ones: is each inside of the published seeds' range?"""
    published, lines = read(PUBLISHED), []
    for (arm, seed), row in sorted(rows.items()):
        known = [final(other) for (name, _), other in published.items() if name == arm and "evals" in other]
        if known:
            mean, low, high = interval(known) if len(known) > 1 else (known[0],) * 3
            same = "the same as published" if (arm, seed) in published and published[arm, seed]["evals"] == row["evals"] else "published for this seed: " + \
                (f"{final(published[arm, seed]):.3f}" if (arm, seed) in published else "none")
            lines.append(f"{arm}, seed {seed}: final {final(row):.3f}; published mean {mean:.3f} ({low:.3f} to {high:.3f}, {len(known)} seeds, which range from {min(known):.3f} to {max(known):.3f}); {same}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- start

@dataclass(frozen=True)
class Config:
    claim: int = 0
    """Of which claim: 1 to 6; 0 is all of them."""
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
    log.info(f"{len(arms)} arms, {config.seeds} seeds: {len(todo)} runs to do, {len(arms) * config.seeds - len(todo)} done; about eight minutes each")
    for part in ([one for one in todo if one[0] != "crossed"], [one for one in todo if one[0] == "crossed"]):  # the trainings before what is made of them
        with concurrent.futures.ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
            try:
                for finished in concurrent.futures.as_completed([pool.submit(run, arm, seed, HERE / "runs" / "experiments") for arm, seed in part]):
                    row = finished.result()
                    with open(folder / "runs.jsonl", "a") as file:
                        file.write(json.dumps(row) + "\n")
                    log.info(f"{row['arm']}, seed {row['seed']}" + (f": {row['evals'][0][2]:.3f} -> {final(row):.3f} in {row['seconds']} s" if "evals" in row else ""))
            finally:  # stopped, or one failed: the others are stopped too, and go on next time
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(RUNNING):
                    process.terminate()
    results = {key: row for key, row in read(folder / "runs.jsonl").items() if key[0] in arms and key[1] < config.seeds}
    publish(read(folder / "runs.jsonl"), folder)
    log.info(compare(results))
    log.info(table(results))


if __name__ == "__main__":
    cli.command(main)
