"""Cost in the objective (--price): what is learned is the reward less the price of its tokens.

A question has one price, which its designer is told. So all designs and executions that are
compared pay the same price, and one model may answer for many. Begin with a trained model, and let
some questions cost nothing: where nothing is learned yet, the cheapest design is the best, and soon
the designer writes no other (experiments/LOG.md).

Test: `pytest tests/test_prices.py`. Read next: replay.py.
"""

import random
from dataclasses import replace

from data_types import Design, Execution, Question, Tree


def draw_prices(questions: list[Question], prices: tuple[float, ...], seed=0) -> list[Question]:
    """Each question with one of the prices. The same arguments draw the same."""
    rng = random.Random(f"prices {seed}")
    return [replace(question, price=rng.choice(prices)) for question in questions]


def at_price(questions: list[Question], price: float) -> list[Question]:
    """All at this one; 0 leaves each its own."""
    return [replace(question, price=price or question.price) for question in questions]


def tokens_of(design: Design, execution: Execution) -> int:
    """Sampled tokens of an answer: its design and all its calls."""
    calls = sum(len(call.completion_ids) for call in execution.calls)
    return len(design.completion_ids) + calls


def cost(question: Question, design: Design, execution: Execution) -> float:
    """In rewards.

    >>> question = Question("q", "?", "1", price=5.0)
    >>> cost(question, Design("", completion_ids=(7,) * 100), Execution((), "1", "answered"))
    0.5
    """
    return question.price * tokens_of(design, execution) / 1000


def net_rewards(tree: Tree) -> list[list[float]]:
    """Of each design, what is left of each execution's reward after paying for its tokens."""
    rows = []
    for design, executions in zip(tree.designs, tree.executions):
        rows.append([e.reward - cost(tree.question, design, e) for e in executions])
    return rows


def name_at(price: float) -> str:
    """What own designs are called in an evaluation where the designer was told a price.

    >>> name_at(0), name_at(2.5)
    ('metaagent', 'metaagent: price 2.5')
    """
    return f"metaagent: price {price:g}" if price else "metaagent"


def price_of(mode: str) -> float | None:
    """The reverse of `name_at`; None for another mode.

    >>> price_of("metaagent"), price_of("metaagent: price 2.5"), price_of("single")
    (0.0, 2.5, None)
    """
    if not mode.startswith("metaagent"):
        return None
    return float(mode.rpartition(" price ")[2] or 0) if " price " in mode else 0.0


def front(results: list) -> str:
    """The front of accuracy against cost, as Markdown. results: of lib/statistics.py.

    The last column is what the designs of the first price would be left with at this one. Where a
    designer heeds the price, its own are left with more.
    """
    columns = "tasks", "price", "accuracy", "tokens", "accuracy less cost", "of the first's designs"
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = {}  # set -> its first result
    for result in results:
        price = price_of(result.mode)
        if price is None:
            continue
        first.setdefault(result.tasks, result)
        cells = [result.tasks, f"{price:g}", f"{result.accuracy:.3f}", f"{result.tokens:.1f}"]
        for other in (result, first[result.tasks]):
            cells.append(f"{other.accuracy - price * other.tokens / 1000:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
