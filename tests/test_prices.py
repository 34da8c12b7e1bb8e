"""Cost in the objective: what is left of a reward, who is told the price, the front."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import QUESTION, lines
from runs import train_run

import eval as evaluation
import tasks
from data_types import Call, Design, Execution, Tree
from designer import designer_messages
from lib.metrics import execution_stats, rollout_metrics
from lib.prices import draw_prices, front
from lib.resampling import is_tie
from rollout import stack_rewards


def execution(num_tokens: int, reward: float, status="answered") -> Execution:
    call = Call("a", (1,), (2,) * num_tokens, (0.0,) * num_tokens, "x")
    return Execution((call,), "x", status, reward=reward)


def tree(price: float, *executions: Execution) -> Tree:
    design = Design("s", completion_ids=(3,) * 100)
    return Tree(replace(QUESTION, price=price), (design,), (executions,))


def test_a_reward_is_what_is_left_after_paying():
    """A design of 100 tokens, calls of 300 and 100: 2.0 a thousand tokens."""
    executions = execution(300, 1.0), execution(100, 0.0), execution(0, 0.0, "infra_error")
    rewards, valid = stack_rewards([tree(2.0, *executions), tree(0.0, *executions)])
    assert rewards.tolist()[0][0] == pytest.approx([1.0 - 0.8, -0.4, -0.2])
    assert rewards.tolist()[1][0] == [1.0, 0.0, 0.0]
    assert valid.tolist() == [[[True, True, False]]] * 2


def test_equals_that_cost_differently_teach_something():
    both_right = execution(300, 1.0), execution(100, 1.0)
    free, dear = tree(0.0, *both_right), tree(2.0, *both_right)
    assert is_tie(free) and not is_tie(dear)
    ties = [rollout_metrics(execution_stats([t]))["frac_reward_zero_std"] for t in (free, dear)]
    assert ties == [1.0, 0.0]


def test_every_price_is_drawn_and_a_run_draws_the_same():
    questions = tasks.load("registry", "train", 0, 300)
    prices = [question.price for question in draw_prices(questions, (0.0, 1.0, 2.0), 0)]
    assert all(prices.count(price) > 60 for price in (0.0, 1.0, 2.0))
    assert prices == [q.price for q in draw_prices(questions, (0.0, 1.0, 2.0), 0)]
    assert prices != [q.price for q in draw_prices(questions, (0.0, 1.0, 2.0), 1)]
    assert draw_prices(questions, (0.0,), 0) == questions


def test_the_designer_is_told_the_price_if_there_is_one():
    dear, free = (
        designer_messages(replace(QUESTION, price=price))[0]["content"] for price in (2.5, 0.0)
    )
    assert "Price: 2.5. " in dear.splitlines()[0] and "Price" not in free
    assert dear.startswith(free.splitlines()[0].replace(" Tools", " Price: 2.5. Tools"))


def test_the_front_by_hand():
    def result(mode, accuracy, tokens):
        return SimpleNamespace(tasks="t", mode=mode, accuracy=accuracy, tokens=tokens)

    results = [
        result("single", 0.1, 10.0),
        result("metaagent", 0.8, 200.0),
        result("metaagent: price 2", 0.7, 100.0),
    ]
    assert front(results).splitlines()[2:] == [
        "| t | 0 | 0.800 | 200.0 | 0.800 | 0.800 |",
        "| t | 2 | 0.700 | 100.0 | 0.500 | 0.400 |",
    ]


def test_a_run_with_prices(tmp_path):
    """It pays, its update is another one than that of a run without prices."""
    for name, flags in (("free", ()), ("dear", ("--price", 0, 5))):
        train_run("--out", tmp_path / name, "--steps", 1, *flags)
    (free,), (dear,) = lines(tmp_path / "free"), lines(tmp_path / "dear")
    assert free["cost"] == 0.0 < dear["cost"] < 1.0
    assert dear["grad_norm"] != free["grad_norm"]
    train_run("--out", tmp_path / "dear", "--resume", "--steps", 2, flags=())
    assert len(lines(tmp_path / "dear")) == 2


def test_an_evaluation_at_three_prices(tmp_path, caplog):
    out = str(tmp_path / "front")
    flags = "--limit 3 --modes fixed,metaagent --prices 0,2,20 --design-tokens 96 --reply-tokens 24"
    with caplog.at_level("INFO", "metaagent"):
        evaluation.main([*flags.split(), "--out", out])
    rows = json.loads((tmp_path / "front" / "results.json").read_text())["results"]
    own = [row["mode"] for row in rows if row["mode"].startswith("metaagent")]
    assert own == ["metaagent", "metaagent: price 2", "metaagent: price 20"]
    assert "accuracy less cost" in caplog.text
    assert (tmp_path / "front" / "front.png").stat().st_size > 1000
