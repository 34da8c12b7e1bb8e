"""The older study: the paper's claims in the world `arithmetic`, five seeds at the tag `v1`.

Published, and only drawn from its rows by today's code: the flags are those of its day. Its default
had phases of ten steps and a KL term of ours, the anchor, which is gone (README.md). All of it is
at temperature 1.

Test: `pytest tests/test_experiments.py`. Read next: run.py.
"""

import statistics
from collections import Counter

from experiments.claims import (
    TEMPERATURE_1,
    Claim,
    Comparison,
    Study,
    final,
    final_difference,
    rows_of,
    spread,
)
from lib.cli import ROOT

CROSSED = (0, 50, 100)  # steps whose designers and executors are paired
ARMS = {
    "stagewise": "",
    "designer": "--stage designer",
    "executor": "--stage executor",
    "coupled": "--stage both",
    "phases of 1": "--phase-steps 1",
    "phases of 30": "--phase-steps 30",
    "16 x 1": "--designs 16 --executions 1",
    "4 x 4": "--designs 4 --executions 4",
    "2 x 8": "--designs 2 --executions 8",
    "1 x 16": "--designs 1 --executions 16",
    # Half the executions of all others: the paper's comparison.
    "8 x 1": "--designs 8 --executions 1",
    "groups by design": "--executor-group design",
    "one execution's credit": "--designer-credit single",
    "shared credit": "--designer-credit shared",
    "no anchor": "--anchor 0",
    "two policies": "--policies two",
    "designer, frozen executor": "--stage designer --policies two",
    # As many tokens as stagewise.
    "single agent": "--fixed-design single --stage executor --designs 1 --executions 16"
    " --steps 500",
    "coder agent": "--fixed-design coder --stage executor --designs 1 --executions 16 --steps 310",
}
SAMPLED = 16  # designs, and executions of each, where variances are measured
SPLITS = ((16, 1), (8, 2), (4, 4), (2, 8), (1, 16))  # ways to spend 16 executions


# ------------------------------------------------------------------------------------ the numbers


def weights(part) -> dict:
    """The share of each family in an evaluation."""
    counts = {
        family: sum(found["designs"].values()) for family, found in part["eval_families"].items()
    }
    return {family: count / sum(counts.values()) for family, count in counts.items()}


def oracle(part) -> float:
    """Accuracy if each family got its best hand-written design, chosen in hindsight on the same
    answers (by the answers of other seeds it would be the same; see LOG.md)."""
    return sum(
        share * max(scores[family] for scores in part["eval_fixed_families"].values())
        for family, share in weights(part).items()
    )


def best_fixed(part) -> float:
    return max(part["eval_fixed"].values())


def own(*parts) -> float:
    """Accuracy of an evaluation; of several, if each family went to the one that is best at it."""
    return sum(
        share * max(part["eval_families"][family]["accuracy"] for part in parts)
        for family, share in weights(parts[0]).items()
    )


def against(one: str, other: str, why: str = "") -> Comparison:
    """Final score of an arm minus another's, at equal tokens. why: said before it."""
    return Comparison(f"{why}{one} - {other}", (one, other), final_difference(TEMPERATURE_1))


def cell(what: str, one, other) -> Comparison:
    """A cell (designer's step, executor's step) of the crossed evaluation minus another."""
    return Comparison(
        what,
        ("crossed",),
        lambda row: (
            row["matrix"][str(one[0])][str(one[1])] - row["matrix"][str(other[0])][str(other[1])]
        ),
    )


CLAIMS = {
    1: Claim(
        "Frozen-executor ceiling: training both goes beyond what training the designer can reach",
        "44.8 against 38.6 (math average)",
        (
            against("stagewise", "designer"),
            against("stagewise", "designer, frozen executor"),
            Comparison(
                "stagewise - the oracle of the start's executor",
                ("stagewise",),
                lambda row: final(row) - oracle(row["before"]),
            ),
            Comparison(
                "that oracle - designer",
                ("designer",),
                lambda row: oracle(row["before"]) - final(row),
            ),
            Comparison(
                "that oracle - designer, frozen executor",
                ("designer, frozen executor",),
                lambda row: oracle(row["before"]) - final(row),
            ),
        ),
    ),
    2: Claim(
        "Both roles improve throughout",
        "the paper's cross-evaluation",
        (
            cell("designer of the end - of the start, executor of the start", (100, 0), (0, 0)),
            cell("executor of the end - of the start, designer of the start", (0, 100), (0, 0)),
            cell("designer of the end - of the start, executor of the end", (100, 100), (0, 100)),
            cell("executor of the end - of the start, designer of the end", (100, 100), (100, 0)),
            cell("designer of the end - of the middle, executor of the end", (100, 100), (50, 100)),
            cell("executor of the end - of the middle, designer of the end", (100, 100), (100, 50)),
        ),
    ),
    3: Claim(
        "Stagewise beats coupled and single-role training",
        "44.8 against 36.7, 38.6 and 39.6 (math average); K = 30 best, 1 collapses",
        (
            against("stagewise", "coupled"),
            against("stagewise", "executor"),
            against("stagewise", "phases of 1"),
            against("phases of 30", "stagewise"),
            *(
                against("no anchor", other, "without the anchor, as in the paper: ")
                for other in ("coupled", "executor", "phases of 1")
            ),
            against("stagewise", "no anchor", "the anchor, ours: "),
        ),
    ),
    4: Claim(
        "Hierarchical rollouts: several designs, and several executions of each",
        "M=4, N=4 against M=8, N=1: 40.0 against 33.3 (AIME24)",
        (
            against("stagewise", "16 x 1", "several executions: "),
            against("4 x 4", "16 x 1", "several executions: "),
            against("stagewise", "2 x 8", "several designs: "),
            against("stagewise", "1 x 16", "several designs: "),
            Comparison(
                "4 x 4 - 8 x 1, at equal steps instead of equal tokens, as in the paper",
                ("4 x 4", "8 x 1"),
                lambda a, b: final(a) - final(b),
            ),
            against("4 x 4", "8 x 1"),
        ),
        also=("variance",),
    ),
    5: Claim(
        "Role-aware credit: executions are compared within the question",
        "the paper's choice",
        (
            against("stagewise", "groups by design"),
            against("stagewise", "one execution's credit"),
            against("stagewise", "shared credit"),
        ),
    ),
    6: Claim(
        "Structure adapts to the task",
        "single / reflection / ensemble: 18.9 / 70.0 / 11.1 % on AIME24, 55.2 / 43.8 / 1.0 % on "
        "APPS",
        (
            Comparison(
                "own designs - best fixed design, same weights",
                ("stagewise",),
                lambda row: own(row["after"]) - best_fixed(row["after"]),
            ),
            Comparison(
                "own designs - oracle by family, same weights",
                ("stagewise",),
                lambda row: own(row["after"]) - oracle(row["after"]),
            ),
        ),
    ),
    7: Claim(
        "One set of weights for both roles is better than one each",
        "40.0 shared against 33.3 separate (AIME24)",
        (against("stagewise", "two policies"), against("designer", "designer, frozen executor")),
    ),
    8: Claim(
        "At equal tokens: against one agent trained by the same GRPO, and against self-consistency",
        "44.78 against 31.40 for a single agent, 33.26 trained by GRPO (math average)",
        (
            against("stagewise", "single agent"),
            against("stagewise", "coder agent"),
            Comparison(
                "own designs - the better of both agents in each family (flattered by hindsight)",
                ("stagewise", "single agent", "coder agent"),
                lambda row, *agents: own(row["after"]) - own(*(agent["after"] for agent in agents)),
            ),
            Comparison(
                "own designs - self-consistency, same weights",
                ("voted",),
                lambda row: row["metaagent"] - row["self_consistency"],
            ),
            Comparison(
                "own designs - self-consistency of the trained single agent",
                ("voted",),
                lambda row: row["metaagent"] - row["single_self_consistency"],
            ),
        ),
    ),
}


def noise(part: dict, M: int, N: int) -> tuple[float, float, float]:
    """How noisy each role's advantages are with M designs x N executions.

    From the reward's variance between designs (b) and within them (w), without the bias of the
    sample that they were measured on, SAMPLED designs x SAMPLED executions:

        designer  the share of luck in the variance of a design's mean reward, (w / N) / (b + w / N)
        update    the variance of the designer's policy gradient of one question, its mean being 1,
                  over that of M N designs with one execution each; see LOG.md
        executor  the variance of the baseline, the mean over all executions, as a share of the
                  reward's, (b / M + w / (M N)) / (b + w)

    With equal rewards, and for a designer of one design, there is nothing to learn from: nan.
    """
    nothing = float("nan")
    within = part["within"] * SAMPLED / (SAMPLED - 1)
    between = max(0.0, part["between"] * SAMPLED / (SAMPLED - 1) - within / SAMPLED)
    total = between + within
    if total == 0:
        return nothing, nothing, nothing
    executor = (between / M + within / (M * N)) / total
    if M == 1:
        return nothing, nothing, executor
    of_means = between + within / N
    return within / N / of_means, of_means / (M - 1) * (M * N - 1) / total, executor


def variances(results: dict) -> str:
    """Claim 4's measurement: the noise of both roles' advantages for each way to spend 16
    executions; "" without runs."""
    rows = rows_of(results, "variance")
    if not rows:
        return ""
    splits = " | ".join(f"{M} x {N}" for M, N in SPLITS)
    lines = [f"| noise of the advantages | {splits} |", "|---" * (len(SPLITS) + 1) + "|"]
    names = (
        "designer: luck in a design's mean reward",
        "designer: relative variance of its gradient, 16 x 1 being 1",
        "executor: variance of the baseline",
    )
    for step in ("0", "100"):
        for i, name in enumerate(names):
            cells = []
            for M, N in SPLITS:
                cells.append(spread([noise(row["steps"][step], M, N)[i] for row in rows]))
            lines.append(f"| {name}, after {step} steps | {' | '.join(cells)} |")
    return "\n".join(lines)


def choices(results: dict) -> str:
    """Claim 6's table: what the trained designer chooses for each family, and the best hand-written
    design there; "" without runs."""
    evaluations = [row["after"] for row in rows_of(results, "stagewise")]
    if not evaluations:
        return ""
    lines = [
        "| family | designs chosen, over all seeds | accuracy | best hand-written design, same "
        "weights, in hindsight |",
        "|---|---|---|---|",
    ]
    for family in evaluations[0]["eval_families"]:
        counts, best_names, best_scores, accuracies = Counter(), Counter(), [], []
        for evaluation in evaluations:
            own_designs = evaluation["eval_families"][family]
            counts.update(own_designs["designs"])
            accuracies.append(own_designs["accuracy"])
            fixed = evaluation["eval_fixed_families"]
            best_name = max(fixed, key=lambda name: fixed[name][family])
            best_names[best_name] += 1
            best_scores.append(fixed[best_name][family])
        shares = [f"{kind} {n / counts.total():.0%}" for kind, n in counts.most_common(4)]
        mostly = best_names.most_common(1)[0][0]
        cells = (
            family,
            ", ".join(shares),
            spread(accuracies),
            f"{spread(best_scores)}, mostly {mostly}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def matrix(axis, arms):
    rows = arms["crossed"]
    values = [
        [
            statistics.fmean(row["matrix"][str(designer)][str(executor)] for row in rows)
            for executor in CROSSED
        ]
        for designer in CROSSED
    ]
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axis.text(
                x,
                y,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value > 0.6 else "black",
            )
    axis.set(
        xlabel="executor after so many steps",
        ylabel=f"designer after so many steps ({len(rows)} seeds)",
        xticks=range(len(CROSSED)),
        yticks=range(len(CROSSED)),
        xticklabels=CROSSED,
        yticklabels=CROSSED,
    )


def side_by_side(axis, arms):
    rows = arms["stagewise"]
    names = [*rows[0]["after"]["eval_fixed"], "oracle", "own designs"]
    values = [[row["after"]["eval_fixed"][name] for row in rows] for name in names[:-2]] + [
        [oracle(row["after"]) for row in rows],
        [own(row["after"]) for row in rows],
    ]
    axis.bar(
        names,
        [statistics.fmean(value) for value in values],
        color=["C7"] * (len(names) - 2) + ["C1", "C0"],
        alpha=0.7,
    )
    for x, value in enumerate(values):
        axis.plot([x] * len(value), value, "k.", markersize=4)
    axis.set(ylabel="held-out accuracy, same weights, after training", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


STUDY = Study(
    folder=ROOT / "experiments" / "results" / "arithmetic",
    arms=ARMS,
    claims=CLAIMS,
    tables=(choices, variances),
    pictures={2: matrix, 6: side_by_side},
    level=lambda row: oracle(row["before"]),
    level_name="best fixed design by family, before training",
)
