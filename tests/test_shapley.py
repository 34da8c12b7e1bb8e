"""The exact value of every call: by hand, and on the tiny model."""

from dataclasses import replace

import pytest
from conftest import with_rollout

import tasks
from data_types import Call, Design, Execution
from engines.hf import HFEngine
from experiments.shapley import (
    Node,
    OwnScripts,
    Replies,
    enumerate_paths,
    shapley_values,
    table,
    value,
)
from lib.replay import name_of
from tiny import registry


def test_a_chain_by_hand():
    """Two calls, each right with 1/2; only both right give 1. A vote's luck is shared."""
    end = {right: Node(reward=float(right)) for right in (False, True)}
    second = {
        first: Node((1, 0), (first,), [(0.5, (0,), end[False]), (0.5, (1,), end[bool(first)])])
        for first in (0, 1)
    }
    root = Node((0, 0), (9,), [(0.5, (0,), second[0]), (0.5, (1,), second[1])])
    calls = [
        Call("a", (9,), (1,), (0.0,), "", number=0),
        Call("b", (1,), (1,), (0.0,), "", number=1),
    ]
    right = Execution(tuple(calls), "x", "answered", reward=1.0)
    values = [value(root, right, frozenset(kept)) for kept in ((), [(0, 0)], [(1, 0)])]
    assert values == [0.25, 0.5, 0.5]
    exact = shapley_values([(0, 0), (1, 0)], lambda kept: value(root, right, kept))
    assert exact == pytest.approx([0.375, 0.375])  # together 1 - 0.25


def test_what_the_tiny_model_may_say(policy):
    """All of it adds up to 1, and the values of an execution's calls to what luck was worth: also
    of executions in which something rare was said."""
    question = tasks.load("registry", "heldout", 0, 8)[5]
    design, replies = Design(registry.best_design(question)), Replies(policy, 24)

    async def work(rollout):
        boxed = await rollout.rollout([question], 1, 5, ("t",), design.script)
        rollout.runtime = replace(rollout.runtime, sandbox=OwnScripts(rollout.runtime.sandbox))
        (tree,) = trees = await rollout.rollout([question], 1, 5, ("t",), design.script)
        assert trees == boxed  # in this process a script of ours does the same
        executions = tree.executions[0]
        return executions, await enumerate_paths(rollout, design, question, replies, executions)

    executions, root = with_rollout(policy, HFEngine(policy), work)
    luck = set()
    for execution in executions:
        names = [name_of(call) for call in execution.calls]
        assert value(root, execution, frozenset(names)) == execution.reward
        exact = shapley_values(names, lambda kept: value(root, execution, kept))
        luck.add(round(execution.reward - sum(exact), 6))
    assert len(luck) == 1 and 0 < luck.pop() < 1  # the expected reward, whatever was said
    assert sum(p for p, *_ in root.branches) == pytest.approx(1, abs=0.01)
    assert len({e.answer for e in executions}) > 2


def test_the_table():
    rows = [
        {
            "question": q,
            "exact": x,
            "execution's": float(q == 1),
            "replay": x + 0.5,
            "leave one out": -x,
        }
        for q, x in enumerate((0.0, 1.0, 2.0))
    ]
    lines = table(rows, draws=50).splitlines()
    assert "| replay | 1.00" in lines[3] and "| 0.50 (0.50 to 0.50) | 0.50" in lines[3]
    assert "| leave one out | -1.00" in lines[4] and "| 0.00" in lines[2]
