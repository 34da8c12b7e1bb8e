"""Metrics of a step, from executions whose numbers are given."""

import time

import pytest
import torch

from data_types import Call, Design, Execution, Question, Tree
from designer import FIXED_DESIGNS
from lib.metrics import (
    Clock,
    execution_stats,
    kind_of,
    merge_updates,
    rollout_metrics,
    structure,
    variance_split,
)
from lib.shapes import read_shapes, shape_hash, write_shapes


@pytest.mark.parametrize(
    "script, name, kind",
    [
        (FIXED_DESIGNS["single"], "single", "single"),
        (FIXED_DESIGNS["coder"], "single+python", "single"),
        (FIXED_DESIGNS["coders"], "vote+python", "ensemble"),
        (FIXED_DESIGNS["relay"], "sequence", "other"),
        (FIXED_DESIGNS["reflect"], "reflect", "reflection"),
        (FIXED_DESIGNS["debate"], "debate", "debate"),
        ("for i in range(3):\n    r = Agent('a', 'b')(question)", "loop", "own loop"),
        ("judge(a, question, replies)", "judge", "ensemble"),
        ("print(1)", "none", "other"),
    ],
)
def test_structures(script, name, kind):
    assert structure(script) == name and kind_of(name) == kind


def test_a_design_of_empty_lines_takes_no_time():
    """A pattern of its own loops once went over them again from each line: 20 s."""
    started = time.process_time()
    assert structure("Agent(" + "\n" * 20_000) == "single"
    assert time.process_time() - started < 0.2


def call(*logprobs):
    return Call("a", (1,), (2,) * len(logprobs), logprobs, "text")


def test_questions_with_equal_ids_are_not_one_group():
    trees = []
    for prompt, reward in (("1 + 1?", 1.0), ("2 + 2?", 0.0)):
        execution = Execution((), "x", "answered", reward=reward)
        trees.append(Tree(Question("1", prompt, "2"), (Design("s"),), ((execution,) * 2,)))
    assert rollout_metrics(execution_stats(trees))["frac_reward_zero_std"] == 1.0


def test_metrics_by_hand():
    """Two designs of one question: rewards 1, 0 and 1, spoiled."""
    right = Execution((call(-1.0, -3.0),), "x", "answered", reward=1.0)
    wrong = Execution((), None, "invalid_script")
    spoiled = Execution((), None, "infra_error")
    designs = Design("submit(Agent('a', 'b')(question))", (1,), (2,), (-0.5,)), Design("x")
    tree = Tree(Question("q", "?", "1", family="f"), designs, ((right, wrong), (right, spoiled)))
    metrics = rollout_metrics(execution_stats([tree]))
    assert metrics["reward"] == pytest.approx(2 / 3)
    assert metrics["designer_reward"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["executor_reward"] == 1.0 and metrics["call_entropy"] == 2.0
    assert metrics["valid_designs"] == pytest.approx(2 / 3) and metrics["infra_errors"] == 1
    assert metrics["frac_reward_zero_std"] == 0.0
    assert metrics["statuses"] == {"answered": 2, "invalid_script": 1, "infra_error": 1}
    assert metrics["structures"] == {"single": 2, "none": 2}


def test_designs_of_new_shapes_by_hand():
    """Of three designs two have one shape, but for the question's name; one is known and wrong."""
    right = Execution((), "x", "answered", reward=1.0)
    wrong = Execution((), "x", "answered")
    trees = []
    for prompt, scripts in (("Is Ada 7?", ("a(Ada)", "b(7)")), ("Is Bob 8?", ("a(Bob)",))):
        executions = tuple(((wrong if script == "b(7)" else right),) for script in scripts)
        trees.append(Tree(Question(prompt, prompt, "1"), tuple(map(Design, scripts)), executions))
    shown = {shape_hash("Is Cleo 9?", "b(9)")}
    metrics = rollout_metrics(execution_stats(trees), shown)
    assert metrics["shapes"] == pytest.approx(100 * 2 / 3)
    assert metrics["new_designs"] == pytest.approx(2 / 3) and metrics["new_among_right"] == 1.0
    assert (metrics["new_reward"], metrics["shown_reward"]) == (1.0, 0.0)
    assert "new_designs" not in rollout_metrics(execution_stats(trees))


def test_the_shapes_of_a_cold_start_are_kept_with_the_model(tmp_path):
    rows = [
        ("designer", [{"role": "user", "content": "Is Ada 7?"}], "a(Ada)"),
        ("executor", [], ""),
    ]
    write_shapes(tmp_path, rows)
    assert read_shapes(str(tmp_path)) == {shape_hash("Is Bob 8?", "a(Bob)")}
    assert read_shapes(str(tmp_path / "nowhere")) is None


def test_variance_split_by_hand():
    """Means 1/2 and 1 around 3/4: between 1/16; within (1/4 + 1/4 + 0 + 0) / 4 = 1/8; the total is
    3/16 = p (1 - p) at p = 3/4."""
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    before = rewards.clone()
    between, within = variance_split(rewards)
    assert (between, within) == pytest.approx((1 / 16, 1 / 8))
    assert between + within == pytest.approx(3 / 16) and torch.equal(rewards, before)


def test_updates_of_two_policies_are_one_line():
    executor = {"trained_tokens": 10, "skipped": 0, "mismatch_max": 0.1, "loss": 1.0}
    designer = {"trained_tokens": 4, "skipped": 1, "mismatch_max": 0.3, "loss": 3.0}
    idle = {"trained_tokens": 0, "skipped": 0, "mismatch_max": 0.0, "loss": 0.0}
    merged = {"trained_tokens": 14, "skipped": 1, "mismatch_max": 0.3, "loss": 2.0}
    assert merge_updates([executor, designer]) == merged
    assert merge_updates([executor, idle]) == executor


def test_the_clock_adds_up():
    class Engine:
        tokens, seconds, cpu_seconds = 5, 1.0, 0.0

    engine = Engine()
    clock = Clock([engine])
    engine.tokens, engine.seconds = 12, 1.5
    parts = "rollout", "ranks", "update"
    for part in parts:
        clock.lap(part)
    metrics = clock.metrics()
    assert metrics["tokens"] == 7 and metrics["seconds_sampling"] == 0.5
    assert metrics["seconds"] >= sum(metrics[f"seconds_{part}"] for part in parts)
