"""Which of the collected samples a cold start is made of: filters, each with its count.

    too long       more tokens than --max-length
    duplicates     the same sample; a design of a shape that its question has already
    per question   more than --per-question designs, or executor samples for each of these
    balance        what is left, in turn over the tasks and over the shapes of designs (of executor
                   samples: over the agents), up to --designer-samples and --executor-samples

The numbers of the paper's cold start are 3K and 8K (arXiv 2605.14212); the filters are ours.

Test: `pytest tests/test_sft.py`. Read next: ../docs/cold_start.md.
"""

import json
import random
from collections import Counter
from typing import Callable

from designer import extract_script
from lib.shapes import shape

CALLS_PER_DESIGN = 4  # executor samples of a question, for each design of it that is allowed


def select(
    rows: list[dict],
    length: Callable,
    max_length: int,
    per_question: int,
    counts: dict[str, int],
    seed: int = 0,
) -> tuple[list[dict], dict[str, int]]:
    """(rows that are kept, how many each filter dropped).

    Args:
        rows: as sft.py --collect writes them.
        length: (row) -> tokens.
        counts: role -> how many rows to keep.
    """
    dropped = {}

    def keep(name: str, left: list[dict]) -> list[dict]:
        dropped[name] = len(rows) - sum(dropped.values()) - len(left)
        return left

    left = list(rows)
    random.Random(f"select {seed}").shuffle(left)
    left = keep("too long", [row for row in left if length(row) <= max_length])
    left = keep("duplicates", first_of_each(left, what_it_shows))
    limits = {"designer": per_question, "executor": per_question * CALLS_PER_DESIGN}
    left = keep("per question", at_most(left, limits))
    balanced = []
    for role, count in counts.items():
        balanced += in_turn([row for row in left if row["role"] == role], count)
    return keep("balance", balanced), dropped


def design_shape(row: dict) -> str:
    """The shape of a designer sample's script."""
    return shape(row["messages"][-1]["content"], extract_script(row["completion"]))


def what_it_shows(row: dict) -> str:
    if row["role"] == "designer":
        return json.dumps([row["question"], design_shape(row)])
    return json.dumps([row["messages"], row["completion"]])


def first_of_each(rows: list[dict], key: Callable) -> list[dict]:
    seen = {}
    for row in rows:
        seen.setdefault(key(row), row)
    return list(seen.values())


def at_most(rows: list[dict], limits: dict[str, int]) -> list[dict]:
    """limits: role -> most rows of a question."""
    seen, left = Counter(), []
    for row in rows:
        name = row["role"], row["question"]
        seen[name] += 1
        if seen[name] <= limits[row["role"]]:
            left.append(row)
    return left


def in_turn(rows: list[dict], count: int) -> list[dict]:
    """Up to `count` rows: one of each family of questions in turn, and within it of each kind."""
    families = {}
    for row in rows:
        # Of an executor sample the agent: its instructions.
        kind = design_shape(row) if row["role"] == "designer" else row["messages"][0]["content"]
        families.setdefault(row.get("family", ""), {}).setdefault(kind, []).append(row)
    queues = [round_robin(list(kinds.values())) for kinds in families.values()]
    return round_robin(queues)[:count]


def round_robin(lists: list[list]) -> list:
    """
    >>> round_robin([["a", "b", "c"], ["x"]])
    ['a', 'x', 'b', 'c']
    """
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]
