"""Claims as comparisons of trainings: numbers, verdicts, tables, pictures. What every study shares.

An *arm* is a training with some flags changed. Arms of one seed see the same questions and begin
with the same weights: they are compared in pairs. A claim is a list of comparisons, each with a
direction. The mean of the paired differences and its 95 % interval (t, over seeds) decide: it
holds, it does not (the interval lies on the other side of 0), or it can't be told. What does not
survive Holm's correction for the number of comparisons can't be told either.

Scores are held-out accuracy of the model's own designs: *final* is the mean of the last three
evaluations, *last* the last, *best* the highest. Where arms sample different numbers of tokens,
both are read at 80, 90 and 100 % of the smaller token count of the pair. A run *collapsed* if its
final score is below half of its best.

Two studies: registry.py, of today's default world, and arithmetic.py, of the older one.

Test: `pytest tests/test_experiments.py`. Read next: registry.py.
"""

import json
import pathlib
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Callable

import numpy
import scipy.stats

SIGNIFICANCE = 0.05
# What an evaluation in a row says of a model's own designs: [updates, tokens, accuracy at
# temperature 1, at temperature 0]. The older rows have no fourth.
TEMPERATURE_1, TEMPERATURE_0 = 2, 3


def read(path: pathlib.Path) -> dict:
    """{(arm, seed): row} of a file of results."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["arm"], row["seed"]): row for row in rows}


# ------------------------------------------------------------------------------------ the numbers


def final(row, tokens: float | None = None, column: int = TEMPERATURE_1) -> float:
    """Mean of the last three evaluations; or of the values linearly interpolated at 80, 90 and 100
    % of `tokens`."""
    accuracies = [evaluation[column] for evaluation in row["evals"]]
    if tokens is None:
        return statistics.fmean(accuracies[-3:])
    used = [evaluation[1] for evaluation in row["evals"]]
    points = [0.8 * tokens, 0.9 * tokens, tokens]
    return statistics.fmean(numpy.interp(points, used, accuracies).tolist())


def last(row, column: int = TEMPERATURE_1) -> float:
    """The last evaluation."""
    return row["evals"][-1][column]


def best(row, column: int = TEMPERATURE_1) -> float:
    return max(evaluation[column] for evaluation in row["evals"])


def collapsed(row, column: int = TEMPERATURE_1) -> float:
    """1.0 if the run ended below half of its best."""
    return float(final(row, column=column) < best(row, column) / 2)


def sank(row, column: int = TEMPERATURE_1) -> float:
    """1.0 if the run ended below where it began."""
    return float(final(row, column=column) < row["evals"][0][column])


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences over seeds (Student's t).

    >>> [round(x, 3) for x in interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    t = float(scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, len(differences) - 1))
    half = t * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def p_value(differences: list[float]) -> float:
    """Two-sided p-value of the mean being 0 (Student's t)."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    if error == 0:
        return 0.0 if mean else 1.0
    t = abs(mean) / error
    return float(2 * scipy.stats.t.sf(t, len(differences) - 1))


def holm(p_values: list[float]) -> list[bool]:
    """Which comparisons are significant after Holm's correction for their number.

    >>> holm([0.001, 0.02, 0.04, 0.6])  # against 0.05 / 4, 0.05 / 3: the second fails
    [True, False, False, False]
    """
    significant = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        if p_values[i] > SIGNIFICANCE / (len(p_values) - rank):
            break
        significant[i] = True
    return significant


# ---------------------------------------------------------------------------- claims and studies


@dataclass(frozen=True)
class Comparison:
    """One number of a claim: of each seed a difference, which the claim says is above 0."""

    what: str
    arms: tuple[str, ...]
    difference: Callable  # (row of each arm) -> float
    beside: Callable | None = None  # the same at temperature 1: shown, and decides nothing
    added_later: bool = False  # after results were seen: shown, without a verdict
    is_control: bool = False  # one side can hardly win: shown, without a verdict

    def over_seeds(self, results: dict, seeds, difference=None) -> list[float]:
        return [
            (difference or self.difference)(*(results[arm, seed] for arm in self.arms))
            for seed in seeds
            if all((arm, seed) in results for arm in self.arms)
        ]


@dataclass(frozen=True)
class Claim:
    title: str
    paper: str
    comparisons: tuple[Comparison, ...]
    also: tuple[str, ...] = ()  # arms that only its tables need

    @property
    def arms(self) -> list[str]:
        return list(
            dict.fromkeys(arm for comparison in self.comparisons for arm in comparison.arms)
            | dict.fromkeys(self.also)
        )


@dataclass(frozen=True)
class Study:
    """The arms and claims of one world, and how its results are shown."""

    folder: pathlib.Path  # of the published results: runs.jsonl, tables, figures
    arms: dict[str, str]  # name -> flags of train.py
    claims: dict[int, Claim]
    tables: tuple[Callable, ...]  # (results) -> Markdown, or "" without runs; after the claims
    pictures: dict[int, Callable] = field(default_factory=dict)  # claim -> (axis, rows by arm)
    # File -> function of (axis, results), which says whether there is anything to see.
    figures: dict[str, Callable] = field(default_factory=dict)
    column: int = TEMPERATURE_1  # of the evaluations: what decides
    level: Callable | None = None  # (row) -> accuracy of a dotted line in the curves
    level_name: str = ""


def final_difference(column: int) -> Callable:
    """(row, row) -> final score of the first minus that of the second, at equal tokens."""

    def difference(a, b) -> float:
        tokens = min(a["evals"][-1][1], b["evals"][-1][1])
        return final(a, tokens, column) - final(b, tokens, column)

    return difference


def verdict(low: float, high: float, is_significant: bool = True) -> str:
    """is_significant: after the correction for the number of comparisons."""
    if low <= 0 <= high:
        return "can't be told"
    if not is_significant:
        return "not after correction"
    return "holds" if low > 0 else "does not"


# -------------------------------------------------------------------------------------- the tables


def decide(study: Study, results: dict) -> list[tuple]:
    """(claim's number, comparison, differences over seeds, verdict) of every comparison with runs.

    Holm's correction is over all that were written down before their own runs. What was added
    later has no verdict: there is no number of these to correct for. Nor has a control.
    """
    seeds = sorted({seed for _, seed in results})
    found = []
    for number, claim in study.claims.items():
        for comparison in claim.comparisons:
            differences = comparison.over_seeds(results, seeds)
            if len(differences) > 1:
                found.append((number, comparison, differences))
    planned = [item for item in found if not item[1].added_later]
    significant = iter(holm([p_value(differences) for *_, differences in planned]))
    decided = []
    for number, comparison, differences in found:
        judged = "added later"
        if not comparison.added_later:
            _, low, high = interval(differences)
            judged = verdict(low, high, next(significant))
        if comparison.is_control:
            judged = "control"
        decided.append((number, comparison, differences, judged))
    return decided


def side(differences: list[float]) -> str:
    """On which side of 0 the interval lies."""
    _, low, high = interval(differences)
    if low > 0:
        return "above 0"
    return "below 0" if high < 0 else "can't be told"


def short_table(study: Study, results: dict) -> str:
    """A table with a row for each claim of the paper that has runs: its first comparison, which
    verdicts the others have, and on which side of 0 the intervals lie of those that were added
    later. Of the claim's title, what is before a colon."""
    header = "| claim | here: mean difference, verdict | others planned | added later |"
    lines = [header, "|---|---|---|---|"]
    decided = defaultdict(list)
    for number, *rest in decide(study, results):
        if study.claims[number].paper != "ours":
            decided[number].append(rest)

    def counted(words: list[str]) -> str:
        return ", ".join(f"{word} ({count})" for word, count in Counter(words).items())

    for number, ((comparison, differences, judged), *others) in decided.items():
        title = study.claims[number].title.split(":")[0]
        first = f"{comparison.what} {statistics.fmean(differences):+.2f}, {judged}"
        planned = [word for *_, word in others if word not in ("added later", "control")]
        added = [side(values) for _, values, word in others if word == "added later"]
        lines.append(f"| {number}. {title} | {first} | {counted(planned)} | {counted(added)} |")
    return "\n".join(lines)


def table(study: Study, results: dict) -> str:
    """The table of all claims that have runs, a line for each comparison."""
    seeds = sorted({seed for _, seed in results})
    decided = decide(study, results)
    has_beside = any(comparison.beside for _, comparison, *_ in decided)
    ours = "ours: mean difference (95 % interval, seeds, p)"
    header = ["claim", "the paper", ours, "verdict"]
    if has_beside:
        header[2:] = [f"{ours}, temperature 0", "verdict", "temperature 1"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    previous = None
    for number, comparison, differences, judged in decided:
        mean, low, high = interval(differences)
        title, paper = "", ""
        if number != previous:
            claim = study.claims[number]
            title, paper = f"{number}. {claim.title}", claim.paper
        previous = number
        p = p_value(differences)
        said = f"p {p:.1g}" if p >= 0.001 else "p < 0.001"
        difference = f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, {len(differences)}, {said})"
        cells = [title, paper, f"{comparison.what}: {difference}"]
        cells.append(judged)
        if has_beside:
            cells.append(beside(comparison, results, seeds))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(comparison: Comparison, results: dict, seeds) -> str:
    if comparison.beside is None:
        return ""
    mean, low, high = interval(comparison.over_seeds(results, seeds, comparison.beside))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and 95 % interval over seeds, as text; "-" where there is none."""
    if any(value != value for value in values):
        return "-"
    mean, low, high = interval(values)
    return f"{mean:.{digits}f}" + (
        f" ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else ""
    )


def rows_of(results: dict, arm: str) -> list[dict]:
    """The rows of an arm, by seed."""
    return [row for (name, _), row in sorted(results.items()) if name == arm]


def scores(study: Study, results: dict) -> str:
    """Every arm's scores over its seeds; how many collapsed, and how many ended below their start;
    "" without runs."""
    lines = []
    for arm, flags in study.arms.items():
        rows = rows_of(results, arm)
        if not rows:
            continue
        cells = (
            arm,
            f"`{flags}`" if flags else "",
            f"{statistics.fmean(row['evals'][-1][1] for row in rows) / 1000:.0f}",
            spread([final(row, column=study.column) for row in rows]),
            spread([last(row, study.column) for row in rows]),
            spread([best(row, study.column) for row in rows]),
            f"{sum(collapsed(row, study.column) for row in rows):.0f}, "
            f"{sum(sank(row, study.column) for row in rows):.0f} of {len(rows)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    header = (
        "| arm | flags of `train.py` | thousand tokens | final | last | best "
        "| seeds that collapsed, ended below their start |"
    )
    return "\n".join([header, "|---|---|---|---|---|---|---|", *lines])


def not_run(study: Study, results: dict) -> str:
    """The comparisons that wait for runs: nothing is left out because of what it says."""
    seeds = sorted({seed for _, seed in results})
    waiting = []
    for number, claim in study.claims.items():
        for comparison in claim.comparisons:
            if len(comparison.over_seeds(results, seeds)) < 2:
                waiting.append(f"{number}: {comparison.what}")
    return f"Planned, with fewer than two seeds so far: {'; '.join(waiting)}." if waiting else ""


def page(study: Study, results: dict) -> str:
    """All tables."""
    tables = [table(study, results), not_run(study, results), scores(study, results)]
    tables += [make(results) for make in study.tables]
    timed = [row["seconds"] for row in results.values() if "seconds" in row]
    hours = sum(timed) / 3600
    tables.append(
        f"{len(results)} runs. {len(timed)} of them took {hours:.1f} hours in all, on one core "
        "each; the others begin with trained models, and their time is not kept."
    )
    return "\n\n".join(filter(None, tables))


# ------------------------------------------------------------------------------------ the pictures


def draw(study: Study, results: dict, folder: pathlib.Path) -> None:
    """One figure a claim: held-out accuracy over training of its arms, every seed faint, the mean
    bold; or what the study has for it."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "metaagent", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    seeds = sorted({seed for _, seed in results})
    for number, claim in study.claims.items():
        if not any(comparison.over_seeds(results, seeds) for comparison in claim.comparisons):
            continue
        arms = {arm: rows_of(results, arm) for arm in claim.arms}
        arms = {arm: rows for arm, rows in arms.items() if rows}
        figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
        if number in study.pictures:
            study.pictures[number](axis, arms)
        else:
            curves(study, axis, {a: rows for a, rows in arms.items() if "evals" in rows[0]})
        axis.set_title(f"{number}. {claim.title}", fontsize=9, wrap=True)
        figure.savefig(folder / f"claim-{number}.svg", metadata={"Date": None})
        plt.close(figure)
    for name, make in study.figures.items():
        figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
        if make(axis, results):
            figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)


def curves(study: Study, axis, arms: dict[str, list[dict]]) -> None:
    for colour, (arm, rows) in zip((f"C{i}" for i in range(10)), arms.items()):
        for row in rows:
            axis.plot(
                [evaluation[1] / 1000 for evaluation in row["evals"]],
                [evaluation[study.column] for evaluation in row["evals"]],
                color=colour,
                alpha=0.2,
                linewidth=0.8,
            )
        length = min(len(row["evals"]) for row in rows)
        tokens, means = (
            [statistics.fmean(row["evals"][i][column] for row in rows) for i in range(length)]
            for column in (1, study.column)
        )
        axis.plot(
            [count / 1000 for count in tokens],
            means,
            color=colour,
            linewidth=2.2,
            label=f"{arm} ({len(rows)})",
        )
    level = statistics.fmean(study.level(row) for rows in arms.values() for row in rows)
    axis.axhline(level, color="grey", linestyle=":", label=study.level_name)
    axis.set(xlabel="thousand tokens sampled", ylabel="held-out accuracy", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
