"""The study of today's default world: the paper's claims as arms and comparisons of `registry`.

Written down before its runs, but for two things: 24 tokens a reply, chosen after the runs with 48,
and what is marked "added later". What decides is accuracy at temperature 0, on 100 held-out
questions of the run's seed, a third of which have a shape that training never asks for; temperature
1 stands beside it. All arms begin with the model in tiny/ and have the default's flags but for
those named.

Derived arms begin with trained models: "trained" (trained.py) measures the stagewise run, "voted"
that and the trained agent with the tool; "priced" trains the designer of the stagewise run further,
with prices.

Test: `pytest tests/test_experiments.py`. Read next: run.py.
"""

import statistics
from collections import Counter
from typing import Callable

import numpy
import scipy.stats

from experiments.claims import (
    TEMPERATURE_0,
    TEMPERATURE_1,
    Claim,
    Comparison,
    Study,
    collapsed,
    final,
    final_difference,
    last,
    rows_of,
    sank,
    spread,
)
from lib.cli import ROOT

COMMON = "--eval-every 20"
AGENT = "--stage executor --designs 1 --executions 16"
ARMS = {
    "stagewise": "",
    "coupled": "--stage both",
    # As many updates of each role as the default's turns. Added later.
    "coupled, 50 steps": "--stage both --steps 50",
    "designer": "--stage designer",
    "designer, frozen executor": "--stage designer --executor tiny",
    "executor": "--stage executor",
    "phases of 10": "--phase-steps 10",
    "coupled, KL": "--stage both --kl 0.01",
    # Several optimizer steps per rollout, as in the paper, but with K = 1: with the default's
    # learning rate, and (added later) with the best of those tried.
    "stagewise, 6 updates": "--minibatches 6",
    "coupled, 6 updates": "--stage both --minibatches 6",
    "stagewise, 6 updates, best rate": "--minibatches 6 --lr 1.5e-4",
    "coupled, 6 updates, best rate": "--stage both --minibatches 6 --lr 1.5e-4",
    "two policies": "--executor tiny",
    "two policies, coupled": "--executor tiny --stage both",
    # The script of a person who does not know who lives where, its executor trained. Added later.
    "script with conditions": f"--designer hand:conditional {AGENT}",
    # About as many tokens as stagewise, or fewer: replies are short.
    "coder agent": f"--designer hand:coder {AGENT} --steps 130",  # one agent with the tool
    # Ours, with about as many tokens: credit for each call (lib/replay.py).
    "replay": "--executor-credit replay --steps 77",
    # When does a system of agents help? Shorter replies, and longer ones.
    "stagewise, 12 tokens": "--reply-tokens 12",
    "stagewise, 48 tokens": "--reply-tokens 48",
    "coder agent, 12 tokens": f"--designer hand:coder {AGENT} --steps 130 --reply-tokens 12",
    "coder agent, 48 tokens": f"--designer hand:coder {AGENT} --steps 130 --reply-tokens 48",
}
# The same from another cold start: another draw of its samples and of the first weights.
SECOND_MODEL = "runs/second-cold-start"
SECOND = {
    f"second cold start, {arm}": f"{ARMS[arm]} --model {SECOND_MODEL}".strip()
    for arm in ("stagewise", "coupled", "executor")
}
SECOND["second cold start, frozen executor"] = (
    f"--stage designer --model {SECOND_MODEL} --executor {SECOND_MODEL}"
)
ARMS |= SECOND
# The same where no agent can make up for a design that asks the wrong one (tiny/namesakes.py).
# Added later.
NAMESAKES_MODEL = "runs/namesakes"
NAMESAKES = f"--tasks namesakes --model {NAMESAKES_MODEL}"
ARMS |= {
    f"namesakes, {arm}": f"{ARMS[arm]} {NAMESAKES}".strip()
    for arm in ("stagewise", "executor", "script with conditions")
}
ARMS["namesakes, frozen executor"] = f"--stage designer {NAMESAKES} --executor {NAMESAKES_MODEL}"
# Models that are not in the repository -> flags of tiny/build.py.
MODELS = {SECOND_MODEL: "--seed 1", NAMESAKES_MODEL: "--world namesakes"}
# Learning rates, on seeds that no comparison has.
RATES = ("1.5e-4", "5e-4", "1.5e-3")
RATED = (
    "stagewise",
    "coupled",
    "executor",
    "designer, frozen executor",
    "coder agent",
    "stagewise, 6 updates",
    "coupled, 6 updates",
)
DEVELOPMENT = {
    f"{arm}, lr {rate}": f"{ARMS[arm]} --lr {rate}".strip() for arm in RATED for rate in RATES
}
DEVELOPMENT_SEEDS = (100, 101)
DERIVED = {  # -> what they need
    "trained": ("stagewise",),
    "voted": ("stagewise", "coder agent"),
    "priced": ("stagewise",),
}
PRICES = (0, 10, 20)
PRICED = "--stage designer --price 0 0 10 20 --steps 80 --eval-every 0"
TEMPERATURES = {0: "temperature 0", 1: "temperature 1"}
START, END = "start", "end"
STEPS = ("1 step", "2 steps", "3 steps", "4 steps", "5 steps")
REPLY_TOKENS = (12, 24, 48)  # of the arms
DEFAULT_REPLY_TOKENS = 24
# Of the tiny model: "code of Muba is 57" and a new line, a program in its fence, "\\boxed{57}".
FACT_TOKENS, PROGRAM_TOKENS, BOX_TOKENS = 6, 10, 4


def against(one: str, other: str, why: str = "", added_later: bool = False) -> Comparison:
    """Final score of an arm minus another's, at equal tokens. why: said before it."""
    return Comparison(
        f"{why}{one} - {other}",
        (one, other),
        final_difference(TEMPERATURE_0),
        beside=final_difference(TEMPERATURE_1),
        added_later=added_later,
    )


def at_equal_updates(turns: str, both: str) -> Comparison:
    """An arm that takes turns minus one that trains both roles in half as many steps, both at their
    end: each role has had as many updates, turns have sampled twice as much."""
    return Comparison(
        f"at equal updates of each role: {turns} - {both}",
        (turns, both),
        lambda a, b: last(a, TEMPERATURE_0) - last(b, TEMPERATURE_0),
        beside=lambda a, b: last(a, TEMPERATURE_1) - last(b, TEMPERATURE_1),
        added_later=True,
    )


def script_of_the_executor_alone(turns: str, executor: str, why: str = "") -> Comparison:
    """Own designs minus the script with conditions, whose executor was trained without a designer
    that learns: it learns to make up for designs that ask the wrong register."""

    def difference(own: str, by_hand: str) -> Callable:
        return lambda row, alone: row["after"][own] - alone["after"][by_hand]["conditional"]

    return Comparison(
        f"{why}own designs - the script with conditions, executor trained alone",
        (turns, executor),
        difference("eval_greedy", "eval_fixed_greedy"),
        beside=difference("eval_accuracy", "eval_fixed"),
        added_later=True,
    )


def at_both(what: str, arm: str, difference, is_control: bool = False) -> Comparison:
    """difference: (row, 0 or 1, which is the temperature) -> float."""
    return Comparison(
        what,
        (arm,),
        lambda row: difference(row, 0),
        beside=lambda row: difference(row, 1),
        is_control=is_control,
    )


def final_at(row: dict, temperature: int) -> float:
    return final(row, column=TEMPERATURE_1 if temperature else TEMPERATURE_0)


def start_oracle(row: dict, temperature: int) -> float:
    """Accuracy of the start's executor under the best design of every question."""
    key = "eval_fixed" if temperature else "eval_fixed_greedy"
    return row["before"][key]["oracle"]


def crossed(row: dict, temperature: int, designer: str, executor: str) -> float:
    """Accuracy with the designer and the executor of the start or of the end."""
    cells = row[TEMPERATURES[temperature]]["crossed"]
    return cells[f"designer of the {designer}, executor of the {executor}"]


def gain(what: str, one: tuple[str, str], other: tuple[str, str]) -> Comparison:
    """A cell (designer, executor) of the crossed evaluation minus another."""
    return at_both(what, "trained", lambda row, t: crossed(row, t, *one) - crossed(row, t, *other))


def own_minus(what: str, key: str, is_control: bool = False) -> Comparison:
    """The trained model's own designs minus others of trained.py, with the same executor."""

    def difference(row: dict, temperature: int) -> float:
        scores = row[TEMPERATURES[temperature]]
        return scores[END]["all"]["own"] - scores[END]["all"][key]

    return at_both(f"own designs - {what}", "trained", difference, is_control)


def own_minus_swapped(row: dict, temperature: int) -> float:
    scores = row[TEMPERATURES[temperature]]["swapped"]
    return scores["own"] - scores["its shape, filled in"]


def own_minus_random(row: dict, temperature: int) -> float:
    scores = row[TEMPERATURES[temperature]]
    return scores[END]["all"]["own"] - scores["best of 64 random"]


def own_minus_votes(what: str, key: str) -> Comparison:
    return Comparison(
        f"own designs - {what}, temperature 1", ("voted",), lambda row: row["own"] - row[key]
    )


def left_after(row: dict, temperature: int, told: int, paid: int) -> float:
    """Accuracy less the cost of its tokens at a price, of the designs for the price told."""
    point = row[TEMPERATURES[temperature]][str(told)]
    return point["accuracy"] - paid * point["tokens"] / 1000


def heeding(price: int) -> Comparison:
    """What the designs for this price have left of it, minus what those for 0 would have."""
    return at_both(
        f"{price} paid: designs told {price} - told 0",
        "priced",
        lambda row, t: left_after(row, t, price, price) - left_after(row, t, 0, price),
    )


CLAIMS = {
    1: Claim(
        "Frozen-executor ceiling: training both goes beyond what training the designer can reach",
        "44.8 against 38.6 (math average)",
        (
            against("stagewise", "designer, frozen executor"),
            against("stagewise", "designer"),
            against(
                "second cold start, stagewise",
                "second cold start, frozen executor",
                added_later=True,
            ),
            against("namesakes, stagewise", "namesakes, frozen executor", added_later=True),
            at_both(
                "stagewise - the oracle of the start's executor",
                "stagewise",
                lambda row, t: final_at(row, t) - start_oracle(row, t),
            ),
            at_both(
                "that oracle - designer, frozen executor",
                "designer, frozen executor",
                lambda row, t: start_oracle(row, t) - final_at(row, t),
            ),
        ),
    ),
    2: Claim(
        "Both roles improve",
        "the paper's cross-evaluation",
        (
            gain("designer's gain, executor of the start", (END, START), (START, START)),
            gain("executor's gain, designer of the start", (START, END), (START, START)),
            gain("designer's gain, executor of the end", (END, END), (START, END)),
            gain("executor's gain, designer of the end", (END, END), (END, START)),
        ),
    ),
    3: Claim(
        "Stagewise beats coupled and single-role training",
        "44.8 against 36.7, 38.6 and 39.6 (math average); K = 30 best, 1 collapses",
        (
            against("stagewise", "coupled"),
            against("stagewise", "executor"),
            against("stagewise", "coupled, KL"),
            against("phases of 10", "stagewise"),
            against("stagewise, 6 updates", "coupled, 6 updates"),
            against(
                "stagewise, 6 updates, best rate",
                "coupled, 6 updates, best rate",
                added_later=True,
            ),
            at_equal_updates("stagewise", "coupled, 50 steps"),
            *(
                against("second cold start, stagewise", other, added_later=True)
                for other in ("second cold start, coupled", "second cold start, executor")
            ),
            against("namesakes, stagewise", "namesakes, executor", added_later=True),
        ),
    ),
    6: Claim(
        "Structure adapts to the question",
        "single / reflection / ensemble: 18.9 / 70.0 / 11.1 % on AIME24, 55.2 / 43.8 / 1.0 % on "
        "APPS",
        (
            own_minus("the best unconditional script", "best unconditional"),
            own_minus("the script with conditions", "conditional"),
            script_of_the_executor_alone("stagewise", "executor"),
            script_of_the_executor_alone(
                "second cold start, stagewise",
                "second cold start, executor",
                "second cold start: ",
            ),
            script_of_the_executor_alone(
                "namesakes, stagewise", "namesakes, executor", "namesakes: "
            ),
            against("stagewise", "script with conditions", added_later=True),
            against("namesakes, stagewise", "namesakes, script with conditions", added_later=True),
            at_both(
                "own designs - the best of 64 random",
                "trained",
                own_minus_random,
                is_control=True,
            ),
            at_both(
                "own designs - the shapes of another question's",
                "trained",
                own_minus_swapped,
                is_control=True,
            ),
            own_minus(
                "the best design of every question (minus regret)", "oracle", is_control=True
            ),
        ),
    ),
    7: Claim(
        "Shared weights beat one set for each role",
        "40.0 shared against 33.3 separate (AIME24)",
        (
            against("stagewise", "two policies"),
            against("coupled", "two policies, coupled"),
            against("designer", "designer, frozen executor"),
        ),
    ),
    8: Claim(
        "At equal tokens: against one agent trained by the same GRPO, and against self-consistency",
        "44.78 against 31.40 for a single agent, 33.26 trained by GRPO (math average)",
        (
            against("stagewise", "coder agent"),
            against(
                "stagewise, 48 tokens",
                "coder agent, 48 tokens",
                "with longer replies: ",
                added_later=True,
            ),
            own_minus_votes("votes of the same weights", "votes"),
            own_minus_votes("votes with the tool, same weights", "votes with the tool"),
            own_minus_votes("votes with the tool of the trained agent", "votes of the agent"),
        ),
    ),
    9: Claim(
        "Credit for each call: by replays, it beats one number for the whole execution",
        "ours",
        (against("replay", "stagewise"),),
    ),
    10: Claim(
        "Cost in the objective: a designer that is told a price has more left after paying it",
        "ours",
        tuple(heeding(price) for price in PRICES[1:]),
    ),
}


# -------------------------------------------------------------------------------------- the tables


def before_and_after(results: dict) -> str:
    """The default run: what it began with and what it ended with; "" without runs."""
    rows = rows_of(results, "stagewise")
    if not rows:
        return ""

    def accuracy(row: dict, when: str, name: str, is_greedy: bool) -> float:
        part, key = row[when], "_greedy" if is_greedy else ""
        if name == "new shapes":
            found = part[f"eval{key}_families"]["new shape"]
            return found if is_greedy else found["accuracy"]
        if name == "oracle, new shapes":
            return part[f"eval_fixed{key}_families"]["oracle"]["new shape"]
        return score_of(part, None if name == "own" else name, temperature=0 if is_greedy else 1)

    def change(value) -> str:
        """value: (row, "before" or "after") -> float."""
        before = statistics.fmean(value(row, "before") for row in rows)
        return f"{before:.2f} -> {spread([value(row, 'after') for row in rows])}"

    lines = [
        f"| mean and 95 % interval over {len(rows)} seeds | temperature 0 | temperature 1 |",
        "|---|---|---|",
    ]
    for title, name in (
        ("a script by hand", "conditional"),
        ("the best designs (oracle)", "oracle"),
        ("**its own designs**", "own"),
        ("the best designs, new shapes", "oracle, new shapes"),
        ("its own designs, new shapes", "new shapes"),
    ):
        cells = [
            change(lambda row, when, g=is_greedy, n=name: accuracy(row, when, n, g))
            for is_greedy in (True, False)
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    share = change(lambda row, when: row[when]["eval_new_among_right"])
    lines.append(f"| right answers by scripts of unshown shape | | {share} |")
    return "\n".join(lines)


def regrets(results: dict) -> str:
    """Accuracy that the best design has more than the model's own, by the number of steps."""
    rows = rows_of(results, "trained")
    if not rows:
        return ""
    lines = [
        "| regret: oracle - own designs | temperature 0, before | after | temperature 1, before "
        "| after |",
        "|---|---|---|---|---|",
    ]
    for group in rows[0]["temperature 0"][END]:
        cells = ["1 step" if group == "1 steps" else group]
        for temperature in TEMPERATURES.values():
            for when in (START, END):
                cells.append(spread([row[temperature][when][group]["regret"] for row in rows]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def two_worlds(results: dict) -> str:
    """Accuracy at the end where an agent can learn what another knows (`registry`), and where it
    can't (`namesakes`); "" without runs of both."""
    lines = [
        "| | registry, temperature 0 | temperature 1 | namesakes, temperature 0 | temperature 1 |",
        "|---|---|---|---|---|",
    ]
    turns = ("stagewise", "namesakes, stagewise")
    frozen = ("designer, frozen executor", "namesakes, frozen executor")
    executor = ("executor", "namesakes, executor")
    by_hand = ("script with conditions", "namesakes, script with conditions")
    for title, arms, design in (
        ("own designs, both roles trained in turns", turns, None),
        ("own designs, only the designer trained", frozen, None),
        ("own designs, only the executor trained", executor, None),
        ("the script with conditions, with that executor", executor, "conditional"),
        ("the same, executor trained under it", by_hand, None),
        ("the best designs, only the executor trained", executor, "oracle"),
    ):
        cells = []
        for arm in arms:
            rows = rows_of(results, arm)
            if not rows:
                return ""
            for temperature in TEMPERATURES:
                values = [score_of(row["after"], design, temperature) for row in rows]
                cells.append(spread(values))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def score_of(evaluation: dict, design: str | None, temperature: int) -> float:
    """Accuracy in an evaluation of a design by hand, or of the model's own designs (None)."""
    if design is None:
        return evaluation["eval_accuracy" if temperature else "eval_greedy"]
    return evaluation["eval_fixed" if temperature else "eval_fixed_greedy"][design]


def fronts(results: dict) -> str:
    """Accuracy and tokens of the designs for each price; "" without runs."""
    rows = rows_of(results, "priced")
    if not rows:
        return ""
    lines = [
        "| price of 1,000 tokens | accuracy, temperature 0 | tokens | left after paying "
        "| accuracy, temperature 1 | tokens | left after paying |",
        "|---|---|---|---|---|---|---|",
    ]
    for price in PRICES:
        cells = [str(price)]
        for t, temperature in TEMPERATURES.items():
            points = [row[temperature][str(price)] for row in rows]
            cells.append(spread([point["accuracy"] for point in points]))
            cells.append(f"{statistics.fmean(point['tokens'] for point in points):.1f}")
            cells.append(spread([left_after(row, t, price, price) for row in rows]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def collapses(results: dict) -> str:
    """How many seeds of two regimes collapsed, or ended below their start, and Fisher's exact test;
    "" without runs."""
    lines = []
    for what, is_bad in (("collapsed", collapsed), ("ended below their start", sank)):
        for one, other in (
            ("stagewise", "coupled"),
            ("stagewise, 6 updates", "coupled, 6 updates"),
        ):
            counts = []
            for arm in (one, other):
                rows = rows_of(results, arm)
                num_bad = int(sum(is_bad(row, TEMPERATURE_0) for row in rows))
                counts.append((num_bad, len(rows) - num_bad))
            if all(sum(count) for count in counts):
                p = scipy.stats.fisher_exact(counts).pvalue
                said = [f"{bad} of {bad + good}" for bad, good in counts]
                lines.append(f"| {what} | {one}: {said[0]} | {other}: {said[1]} | {p:.2f} |")
    if not lines:
        return ""
    header = "| seeds that | of | of | p, Fisher's exact test |"
    return "\n".join([header, "|---|---|---|---|", *lines])


def rates(results: dict) -> str:
    """Final accuracy of each seed, by arm and learning rate; "" without runs."""
    lines = [f"| learning rate | {' | '.join(RATES)} |", "|---|" + "---|" * len(RATES)]
    for arm in RATED:
        cells = []
        for rate in RATES:
            rows = rows_of(results, f"{arm}, lr {rate}")
            finals = [final(row, column=TEMPERATURE_0) for row in rows]
            cells.append(", ".join(f"{score:.2f}" for score in finals))
        if any(cells):
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) if lines[2:] else ""


def new_shapes(results: dict, count: int = 5) -> list[dict]:
    """The designs of shapes never shown that were right most often, each with a question."""
    counts, examples = Counter(), {}
    for row in rows_of(results, "stagewise"):
        for example in row["after"]["eval_new_examples"]:
            name = example["shape"]
            counts[name] += example["count"]
            examples.setdefault(name, example)
    return [examples[name] | {"count": n} for name, n in counts.most_common(count)]


def new_designs(results: dict) -> str:
    """`new_shapes` as a list: the question, and what the design does between setting up its agents
    and submitting the last reply."""
    lines = []
    for example in new_shapes(results):
        calls = [line for line in example["design"].splitlines() if "Agent(" not in line]
        calls = [line for line in calls if line != "submit(x)"]
        lines.append(f"- {example['question']}\n  `{'; '.join(calls)}`")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ the pictures


def front_of_prices(axis, arms: dict[str, list[dict]]) -> None:
    """Accuracy against tokens of the designs for each price at temperature 0."""
    rows = arms["priced"]
    points = {"tokens": [], "accuracy": []}
    for key, of_rows in points.items():
        of_rows += [[row[TEMPERATURES[0]][str(p)][key] for p in PRICES] for row in rows]
        of_rows.append([statistics.fmean(values) for values in zip(*of_rows)])
    lines = list(zip(points["tokens"], points["accuracy"]))
    for tokens, accuracy in lines[:-1]:
        axis.plot(tokens, accuracy, "o-", color="#1d5bbf", alpha=0.25)
    axis.plot(*lines[-1], "o-", color="#1d5bbf", linewidth=2.5)
    for price, tokens, accuracy in zip(PRICES, *lines[-1]):
        axis.annotate(f"price {price}", (tokens, accuracy))
    axis.set(xlabel="sampled tokens per answer", ylabel="accuracy, temperature 0")


def matrix(axis, arms: dict[str, list[dict]]) -> None:
    """The crossed evaluation at temperature 0."""
    rows, ends = arms["trained"], (START, END)
    values = [
        [statistics.fmean(crossed(row, 0, designer, executor) for row in rows) for executor in ends]
        for designer in ends
    ]
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            colour = "white" if value > 0.6 else "black"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour)
    axis.set(
        xlabel="executor, temperature 0",
        ylabel=f"designer ({len(rows)} seeds)",
        xticks=range(2),
        yticks=range(2),
        xticklabels=(START, END),
        yticklabels=(START, END),
    )


def side_by_side(axis, arms: dict[str, list[dict]]) -> None:
    """The trained executor under its own designs and under others, at temperature 0."""
    rows = arms["trained"]
    names = ("best unconditional", "conditional", "own", "oracle")
    values = [[row["temperature 0"][END]["all"][name] for row in rows] for name in names]
    axis.bar(
        names,
        [statistics.fmean(value) for value in values],
        color=["C7", "C7", "C0", "C1"],
        alpha=0.7,
    )
    for x, value in enumerate(values):
        axis.plot([x] * len(value), value, "k.", markersize=4)
    axis.set(ylabel="held-out accuracy after training, temperature 0", ylim=(0, 1.02))
    axis.grid(alpha=0.3)


def when_agents_help(axis, results: dict) -> bool:
    """Accuracy of own designs minus that of the trained agent with the tool, temperature 0, by the
    length of a reply and the number of steps; and the most steps that a reply has room for."""
    values = numpy.full((len(STEPS), len(REPLY_TOKENS)), numpy.nan)
    for x, length in enumerate(REPLY_TOKENS):
        suffix = "" if length == DEFAULT_REPLY_TOKENS else f", {length} tokens"
        arms = [rows_of(results, f"{arm}{suffix}") for arm in ("stagewise", "coder agent")]
        if not all(arms):
            continue
        for y, steps in enumerate(STEPS):
            own, agent = (
                statistics.fmean(row["after"]["eval_greedy_families"][steps] for row in rows)
                for rows in arms
            )
            values[y, x] = own - agent
            axis.text(x, y, f"{own:.2f} - {agent:.2f}", ha="center", va="center", fontsize=8)
    image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu", origin="lower", aspect="auto")
    axis.figure.colorbar(image, label="own designs - one trained agent, accuracy")
    fits = [sum(reply_length(n) <= length for n in range(1, 6)) for length in REPLY_TOKENS]
    axis.step(range(len(fits)), [n - 0.5 for n in fits], where="mid", color="black", linestyle="--")
    axis.set(
        xlabel="tokens of a reply (below the dashed line, one reply has room for all steps)",
        ylabel="steps of the question",
        xticks=range(len(REPLY_TOKENS)),
        xticklabels=REPLY_TOKENS,
        yticks=range(len(STEPS)),
        yticklabels=range(1, 6),
        title="When does a system of agents help? Both trained by the same GRPO",
    )
    return not numpy.isnan(values).any()


def reply_length(steps: int) -> int:
    """Tokens in which one agent thinks all steps of a question, the last of them by a program."""
    facts = max(1, steps - 1)
    return FACT_TOKENS * facts + (PROGRAM_TOKENS if steps > 1 else BOX_TOKENS)


STUDY = Study(
    folder=ROOT / "experiments" / "results" / "registry",
    arms=ARMS,
    claims=CLAIMS,
    tables=(before_and_after, regrets, fronts, collapses),
    pictures={2: matrix, 6: side_by_side, 10: front_of_prices},
    figures={"when_agents_help.svg": when_agents_help},
    column=TEMPERATURE_0,
    level=lambda row: start_oracle(row, 0),
    level_name="best design of every question, executor of the start",
)
