"""What the answers of an evaluation say: accuracy with its interval, pass@k, cost, designs.

Accuracy is pass@1, the mean over a question's answers. What the engine or the sandbox spoiled is
left out, and counted. Intervals are of 95 %, over questions: Wilson's for shares, else bootstrap.
pass@k is the unbiased estimate of Chen et al. (arXiv 2107.03374).

Test: `pytest tests/test_eval.py`. Read next: heldout.py.
"""

import math
import random
import re
import statistics
from collections import Counter
from dataclasses import dataclass

from data_types import Tree
from lib.errors import SandboxError
from lib.metrics import KINDS, eval_score, kind_of, structure, unique_name
from lib.prices import tokens_of
from lib.shapes import shape_hash


@dataclass(frozen=True)
class Result:
    """One line of the table. Means are per answer."""

    tasks: str
    mode: str
    accuracy: float  # pass@1
    interval: tuple[float, float]
    pass_at_k: float  # k: the number of samples
    calls: float
    tokens: float  # sampled
    prompt_tokens: float  # read, of the design and of all calls; nan if a server keeps them
    valid_designs: float
    new_designs: float  # share of designs that the cold start has not shown; nan if not known
    infra_errors: int  # answers that the engine or the sandbox spoiled: left out, never scored 0
    structures: dict
    correct: tuple[float, ...]  # the mean score of each question, in order


def wilson95(num_right: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, which is right also near 0 and 1.

    >>> low, high = wilson95(0, 48)
    >>> round(low, 3), round(high, 3)
    (0.0, 0.074)
    """
    share, z = num_right / count, statistics.NormalDist().inv_cdf(0.975)
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def interval95(values, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """Of the mean of `values`, one per question: Wilson's if all are 0 or 1, else the bootstrap's.

    >>> low, high = interval95([1.0, 1.0, 1.0])
    >>> round(low, 2), high
    (0.44, 1.0)
    """
    values = list(values)
    if set(values) <= {0.0, 1.0}:
        return wilson95(round(sum(values)), len(values))
    rng = random.Random(seed)
    means = []
    for _ in range(draws):
        means.append(sum(rng.choices(values, k=len(values))) / len(values))
    means.sort()
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def pass_at_k(num_solved: int, num_samples: int, k: int) -> float:
    """The chance that one of k answers is right, drawn without replacement from the samples.

    >>> pass_at_k(1, 4, 1), pass_at_k(1, 4, 4), pass_at_k(2, 4, 2)
    (0.25, 1.0, 0.8333333333333334)
    """
    return 1 - math.comb(num_samples - num_solved, k) / math.comb(num_samples, k)


def prompt_tokens_of(design, execution) -> int | None:
    """Tokens that the model reads for an answer. None: a server has them, as messages."""
    prompts = [design.prompt_ids, *(call.prompt_ids for call in execution.calls)]
    if not all(type(token) is int for prompt in prompts for token in prompt):
        return None
    return sum(map(len, prompts))


def record(tree: Tree) -> dict:
    """What is kept of one question's answers."""
    pairs = tree.pairs()
    valid = [(design, execution) for design, execution in pairs if execution.valid]
    spoiled = [execution for _, execution in pairs if not execution.valid]
    return {
        "question": unique_name(tree.question),
        "scores": [eval_score(tree.question, execution.reward) for _, execution in valid],
        "calls": [len(execution.calls) for _, execution in valid],
        "tokens": [tokens_of(design, execution) for design, execution in valid],
        "prompt_tokens": [prompt_tokens_of(design, execution) for design, execution in valid],
        "valid": [e.status not in ("invalid_script", "crashed") for _, e in valid],
        "shapes": [shape_hash(tree.question.prompt, design.script) for design, _ in valid],
        "structures": [structure(design.script) for design, _ in valid],
        "infra_errors": len(spoiled),
        "detail": spoiled[0].detail if spoiled else "",
    }


def summarise(name: str, mode: str, records: list[dict], shown: frozenset | None = None) -> Result:
    """Accuracy and cost of the records of a set. Raises SandboxError if no answer is left.

    shown: the shapes of designs in the cold start, if they are known.
    """
    answered = [record for record in records if record["scores"]]
    if not answered:
        detail = records[0]["detail"] if records else "no questions"
        raise SandboxError(f"every execution of {name} failed in the infrastructure: {detail}")

    def all_of(key: str) -> list:
        return [value for record in answered for value in record[key]]

    prompt_tokens = all_of("prompt_tokens")
    is_new = [shape not in shown for shape in all_of("shapes")] if shown is not None else []
    correct = tuple(statistics.fmean(record["scores"]) for record in answered)
    k = min(len(record["scores"]) for record in answered)
    passes = []
    for record in answered:
        num_solved = sum(score == 1.0 for score in record["scores"])
        passes.append(pass_at_k(num_solved, len(record["scores"]), k))
    return Result(
        tasks=name,
        mode=mode,
        accuracy=statistics.fmean(correct),
        interval=interval95(correct),
        pass_at_k=statistics.fmean(passes),
        calls=statistics.fmean(all_of("calls")),
        tokens=statistics.fmean(all_of("tokens")),
        prompt_tokens=math.nan if None in prompt_tokens else statistics.fmean(prompt_tokens),
        valid_designs=statistics.fmean(all_of("valid")),
        new_designs=statistics.fmean(is_new) if is_new else math.nan,
        infra_errors=sum(record["infra_errors"] for record in records),
        structures=dict(Counter(all_of("structures")).most_common()),
        correct=correct,
    )


def table(results: list[Result]) -> str:
    """The results as Markdown: accuracy by set as in the paper, then every line's cost."""
    return "\n".join([*accuracy_table(results), "", *cost_table(results)])


def accuracy_table(results: list[Result]) -> list[str]:
    """Accuracy in per cent, by set, with the gain over the single agent."""
    names = list(dict.fromkeys(result.tasks for result in results))
    accuracy = {}  # mode -> set -> accuracy
    for result in results:
        mode = re.sub(r" \(.*", "", result.mode)
        accuracy.setdefault(mode, {})[result.tasks] = result.accuracy
    for by_set in accuracy.values():
        by_set["mean"] = statistics.fmean(by_set.values())

    lines = [f"| accuracy, % | {' | '.join(names)} | mean |", "|---" * (len(names) + 2) + "|"]
    baseline = accuracy.get("single", {})
    for mode, by_set in accuracy.items():
        cells = []
        for name in (*names, "mean"):
            if name not in by_set:
                cells.append("-")
                continue
            cell = f"{100 * by_set[name]:.1f}"
            if name in baseline and mode != "single":
                cell += f" ({100 * (by_set[name] - baseline[name]):+.1f})"
            cells.append(cell)
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return lines


def cost_table(results: list[Result]) -> list[str]:
    columns = (
        *("tasks", "mode", "accuracy", "95 % interval", "pass@k", "questions", "calls", "tokens"),
        *("prompt tokens", "valid designs", "new designs", "left out", ", ".join(KINDS)),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        shares = Counter()
        for name, count in result.structures.items():
            shares[kind_of(name)] += count / sum(result.structures.values())
        low, high = result.interval
        cells = (
            result.tasks,
            result.mode,
            f"{result.accuracy:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{result.pass_at_k:.3f}",
            str(len(result.correct)),
            f"{result.calls:.2f}",
            f"{result.tokens:.1f}",
            number(result.prompt_tokens, ".1f"),
            f"{result.valid_designs:.1%}",
            number(result.new_designs, ".1%"),
            str(result.infra_errors),
            ", ".join(f"{shares[kind]:.0%}" for kind in KINDS),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value: float, form: str) -> str:
    """A dash for what is not known."""
    return "-" if math.isnan(value) else format(value, form)
