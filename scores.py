"""What the answers of an evaluation say: accuracy with its interval, pass@k, cost, designs; and the tables.

Accuracy is pass@1, the mean over a question's answers. What the engine or the sandbox spoiled is left out, and counted. Intervals are 95 % bootstrap
intervals over questions; pass@k is the unbiased estimate of Chen et al. (arXiv 2107.03374).
Test: `pytest tests/test_eval.py`. Read next: pages.py.
"""
import hashlib
import math
import random
import re
import statistics
from collections import Counter
from dataclasses import dataclass

from designer import KINDS, kind_of, structure
from rollout import Tree
from sandbox import SandboxError


@dataclass(frozen=True)
class Result:
    """One row of the table. Means are per answer; `correct` holds the mean score of each question, in order."""
    tasks: str
    mode: str
    accuracy: float  # pass@1
    interval: tuple[float, float]
    pass_at_k: float  # k: the number of samples
    calls: float
    tokens: float
    valid_designs: float
    infrastructure: int  # answers that the engine or the sandbox spoiled: left out, never scored 0
    structures: dict
    correct: tuple[float, ...]


def interval95(values, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The bootstrap interval of the mean of `values`, one per question.

    >>> interval95([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    rng, values = random.Random(seed), list(values)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def pass_at_k(solved: int, samples: int, k: int) -> float:
    """The chance that one of k answers is right, drawn without replacement from `samples` of which `solved` are.

    >>> pass_at_k(1, 4, 1), pass_at_k(1, 4, 4), pass_at_k(2, 4, 2)
    (0.25, 1.0, 0.8333333333333334)
    """
    return 1 - math.comb(samples - solved, k) / math.comb(samples, k)


def tokens_of(design, execution) -> int:
    return len(design.completion_ids) + sum(len(call.completion_ids) for call in execution.calls)


def score(question, reward: float) -> float:
    """What a reward counts in an evaluation: of a program, all tests or nothing."""
    return float(reward == 1.0) if question.kind == "code" else reward


def name_of(question) -> str:
    """A name for a question that no other has, whatever ids a file gives."""
    return f"{question.id} {hashlib.sha256(question.prompt.encode('utf-8', 'replace')).hexdigest()[:12]}"


def record(tree: Tree) -> dict:
    """What is kept of one question's answers."""
    runs = [(design, execution, score(tree.question, reward)) for design, execution, reward in tree.flat()]
    kept = [run for run in runs if run[1].status != "infrastructure"]
    return {"question": name_of(tree.question), "scores": [reward for _, _, reward in kept], "calls": [len(execution.calls) for _, execution, _ in kept],
            "tokens": [tokens_of(design, execution) for design, execution, _ in kept],
            "valid": [execution.status not in ("invalid_script", "crashed") for _, execution, _ in kept],
            "structures": [structure(design.script) for design, _, _ in kept], "infrastructure": len(runs) - len(kept),
            "detail": next((execution.detail for _, execution, _ in runs if execution.status == "infrastructure"), "")}


def summarise(name: str, mode: str, records: list[dict]) -> Result:
    """Accuracy and cost of the records of a set. Raises SandboxError if no answer is left."""
    kept = [row for row in records if row["scores"]]
    if not kept:
        raise SandboxError(f"every execution of {name} failed in the infrastructure: {records[0]['detail'] if records else 'no questions'}")
    correct = tuple(statistics.fmean(row["scores"]) for row in kept)
    k = min(len(row["scores"]) for row in kept)

    def flat(key):
        return [value for row in kept for value in row[key]]

    return Result(name, mode, statistics.fmean(correct), interval95(correct),
                  statistics.fmean(pass_at_k(sum(value == 1.0 for value in row["scores"]), len(row["scores"]), k) for row in kept),
                  statistics.fmean(flat("calls")), statistics.fmean(flat("tokens")), statistics.fmean(flat("valid")),
                  sum(row["infrastructure"] for row in records), dict(Counter(flat("structures")).most_common()), correct)


def table(rows: list[Result]) -> str:
    """The results as Markdown: accuracy by set as in the paper, with the gain over the single agent; then every row's cost."""
    names, modes = list(dict.fromkeys(row.tasks for row in rows)), list(dict.fromkeys(re.sub(r" \(.*", "", row.mode) for row in rows))
    scores = {(row.tasks, re.sub(r" \(.*", "", row.mode)): row.accuracy for row in rows}
    lines = [f"| accuracy, % | {' | '.join(names)} | mean |", "|---" * (len(names) + 2) + "|"]
    for mode in modes:
        values = [scores.get((name, mode)) for name in names] + [statistics.fmean(scores[name, mode] for name in names if (name, mode) in scores)]
        base = [scores.get((name, "single")) for name in names]
        base.append(statistics.fmean(base) if base and None not in base else None)
        cells = ["-" if value is None else f"{100 * value:.1f}" + (f" ({100 * (value - zero):+.1f})" if zero is not None and mode != "single" else "")
                 for value, zero in zip(values, base)]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    lines += ["", "| tasks | mode | accuracy | 95 % interval | pass@k | questions | calls | tokens | valid designs | left out | " + ", ".join(KINDS) + " |",
              "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        kinds = Counter()
        for name, count in row.structures.items():
            kinds[kind_of(name)] += count / sum(row.structures.values())
        shares = ", ".join(f"{kinds[kind]:.0%}" for kind in KINDS)
        lines.append(f"| {row.tasks} | {row.mode} | {row.accuracy:.3f} | {row.interval[0]:.3f} - {row.interval[1]:.3f} | {row.pass_at_k:.3f} | "
                     f"{len(row.correct)} | {row.calls:.2f} | {row.tokens:.1f} | {row.valid_designs:.1%} | {row.infrastructure} | {shares} |")
    return "\n".join(lines)
