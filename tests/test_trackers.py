"""TensorBoard and Weights & Biases: what they are sent, and what is wrong is one line."""

import sys
from types import SimpleNamespace

import pytest

from lib import trackers
from lib.errors import UserError
from lib.trackers import open_tracker

EPISODE = {
    "question": "What is 6 * 7?",
    "designs": [{"script": "a = 1\nsubmit(a | b)", "reward": 1.0, "advantage": 0.7}],
}
METRICS = {"step": 3, "reward": 0.5, "eval_greedy": 0.25, "trained_roles": ["designer"]}


class FakeWandb:
    """The part of wandb that we use. No server: it keeps what it was asked."""

    Error = type("Error", (Exception,), {})

    def __init__(self, problem=None):
        self.problem = problem
        self.opened = []
        self.logged = []
        self.codes = []

    def init(self, **options):
        if self.problem:
            raise self.Error(self.problem)
        self.opened.append(options)
        return SimpleNamespace(
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda exit_code: self.codes.append(exit_code),
        )

    def Table(self, columns, data):
        return columns, data


def test_a_resumed_run_goes_on_in_the_same_run_at_wandb(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for out in ("one", "one", "two"):
        (tmp_path / out).mkdir(exist_ok=True)
        tracker = open_tracker("wandb", tmp_path / out, {"steps": 5})
    ids = [options["id"] for options in wandb.opened]
    assert ids[0] == ids[1] != ids[2] and wandb.opened[0]["config"] == {"steps": 5}
    assert {options["resume"] for options in wandb.opened} == {"allow"}
    tracker.numbers(METRICS, 3)
    tracker.designs(EPISODE, 3)
    table = trackers.COLUMNS, [["What is 6 * 7?", "a = 1\nsubmit(a | b)", 1.0, 0.7]]
    assert wandb.logged == [
        (3, {"train/reward": 0.5, "eval/greedy": 0.25}),
        (3, {"designs": table}),
    ]
    tracker.close(has_failed=True)
    assert wandb.codes == [1]


def test_a_login_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("No API key configured."))
    with pytest.raises(UserError, match="--tracker wandb: No API key configured"):
        open_tracker("wandb", tmp_path, {})


def test_tensorboard(tmp_path, monkeypatch):
    """With a stand-in for its writer: it may not be installed."""
    sent = []

    class Writer:
        def __init__(self, folder):
            sent.append(folder)

        def add_text(self, *what):
            sent.append(what)

        add_scalar = add_text

        def close(self):
            sent.append("closed")

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tracker = open_tracker("tensorboard", tmp_path, {"steps": 5})
    tracker.numbers(METRICS, 3)
    tracker.designs(EPISODE, 3)
    assert sent[0] == tmp_path / "tensorboard" and "| steps | 5 |" in sent[1][1]
    assert ("eval/greedy", 0.25, 3) in sent
    assert "a = 1<br>submit(a \\| b)" in sent[-1][1] and sent[-1][2] == 3
    tracker.close(has_failed=False)
    assert sent[-1] == "closed"


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    for name, module in (("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"--tracker {name}: not installed"):
            open_tracker(name, tmp_path, {})
