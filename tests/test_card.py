"""The model card, and the best checkpoint."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from conftest import SMALL_RUN, lines
from runs import same, weights

import train
from lib import launch
from lib.card import card
from policy import Policy

CONFIG = {"model": "m", "stage": "designer", "tasks": "registry", "lr": 0.1, "out": "/secret"}


def test_a_card():
    rows = [
        {"step": step, "eval_greedy": greedy, "eval_accuracy": 0.25}
        for step, greedy in ((0, 0.5), (49, 0.75), (99, 0.625))
    ]
    best, last = (card(CONFIG, "m", rows, "run", name) for name in ("best", "checkpoint"))
    assert "| after 50 steps, temperature 0 | 0.750 |" in best
    assert "| after 100 steps, temperature 0 | 0.625 |" in last
    for text in (best, last, card(CONFIG, "m", [], "run", "best")):
        assert "base_model: m" in text and "--lr 0.1" in text and "/secret" not in text
        assert "only the designer role" in text


def test_the_card_of_the_best_models_is_of_their_evaluation():
    """With --price they are chosen by accuracy less cost; with --eval-every 1 the first step has an
    evaluation of its own beside the start's."""
    start = {"eval_greedy": 0.25, "eval_accuracy": 0.25, "eval_cost": 0.0}
    rows = [
        {
            "step": 0,
            "eval_greedy": 0.75,
            "eval_accuracy": 0.5,
            "eval_cost": 0.1,
            "eval_start": start,
        },
        {"step": 1, "eval_greedy": 0.8, "eval_accuracy": 0.5, "eval_cost": 0.3},
    ]
    text = card(CONFIG, "m", rows, "run", "best")
    assert "| after 1 steps, temperature 0 | 0.750 |" in text
    assert "| held-out accuracy before, temperature 0 | 0.250 |" in text


def test_the_best_models_are_kept(tmp_path, monkeypatch):
    """Evaluated 0.5 at the start, then 0.6, 0.4, and after a stop that again, 0.6 and 0.7."""
    scores = iter([0.5, 0.6, 0.4, 0.4, 0.6, 0.7])
    kept = []
    evaluate, save = train.evaluate_heldout, launch.checkpoint.save_best

    async def scored(trainer):
        return await evaluate(trainer) | {"eval_greedy": next(scores)}

    def saved(out, learners, step, is_writer):
        kept.append(step)
        save(out, learners, step, is_writer)

    monkeypatch.setattr(train, "evaluate_heldout", scored)
    monkeypatch.setattr(launch.checkpoint, "save_best", saved)
    flags = ["--eval-every", "1", "--save-every", "1", "--out", str(tmp_path)]
    train.main([*SMALL_RUN, "--steps", "2", *flags, "--stage", "both"])
    assert kept == [1]
    train.main(["--out", str(tmp_path), "--resume", "--steps", "4"])
    assert kept == [1, 4] and [row["eval_greedy"] for row in lines(tmp_path)[1:]] == [0.4, 0.6, 0.7]
    assert same(weights(tmp_path, "best"), weights(tmp_path)) and Policy(str(tmp_path / "best"))
    assert launch.start_of(lines(tmp_path)[0])["eval_greedy"] == 0.5
    for folder in ("best", "checkpoint"):
        text = (tmp_path / folder / "README.md").read_text()
        assert "| after 4 steps, temperature 0 | 0.700 |" in text
        assert "| held-out accuracy before, temperature 0 | 0.500 |" in text
    assert not (tmp_path / "best" / "trainer.pt").exists()
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4


@pytest.mark.parametrize("accuracy, is_kept", [(0.62, False), (0.7, True)])
def test_a_resumed_run_knows_how_good_the_start_was(tmp_path, monkeypatch, accuracy, is_kept):
    kept = []
    monkeypatch.setattr(launch.checkpoint, "save_best", lambda *arguments: kept.append(arguments))
    rows = [
        {"step": 0, "eval_start": {"eval_greedy": 0.65}, "eval_greedy": 0.6},
        {"step": 1, "reward": 0.5},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    trainer = SimpleNamespace(
        best_accuracy=-1.0,
        config=SimpleNamespace(resume=True),
        rank=0,
        out=tmp_path,
        step=2,
        learners=[],
        publish=lambda: None,
    )
    asyncio.run(launch.keep_best(trainer, {"eval_greedy": accuracy}))
    assert len(kept) == is_kept and trainer.best_accuracy == max(accuracy, 0.65)
