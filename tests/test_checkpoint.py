"""Checkpoints: whatever happens while one is written, a complete one is found."""

import os

import pytest
import torch
from conftest import learner

from lib import checkpoint
from lib.errors import UserError
from policy import Policy


class Killed(BaseException):
    pass


@pytest.mark.parametrize("crash_at", ["save", "rename current", "rename new", "never"])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch, crash_at):
    """Stop at every stage of the second save: the old or the new checkpoint is there, complete."""
    subject = learner()
    checkpoint.save(tmp_path, [subject], step=1)
    real_rename, real_save = os.rename, torch.save
    renames = []

    def crash_rename(source, target):
        renames.append(source)
        if crash_at == ("rename current" if len(renames) == 1 else "rename new"):
            raise Killed
        real_rename(source, target)

    def crash_save(state, path):
        real_save({"half": 1}, path)
        raise Killed

    monkeypatch.setattr(os, "rename", crash_rename)
    if crash_at == "save":
        monkeypatch.setattr(torch, "save", crash_save)
    try:
        checkpoint.save(tmp_path, [subject], step=2)
    except Killed:
        pass
    monkeypatch.undo()
    folder = checkpoint.find(tmp_path)
    step = checkpoint.restore(checkpoint.read(folder), subject)
    assert step == (2 if crash_at == "never" else 1) and Policy(str(folder))
    checkpoint.save(tmp_path, [subject], step=3)  # and the next save works
    assert checkpoint.read(checkpoint.find(tmp_path))["step"] == 3


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    subject = learner()
    checkpoint.save(tmp_path, [subject], step=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(tmp_path, [subject], step=2)
    assert checkpoint.read(checkpoint.find(tmp_path))["step"] == 1
    assert not (tmp_path / "checkpoint.new").exists()


def test_the_best_models_have_no_optimizer(tmp_path, monkeypatch):
    """Gathered, it would fill the first rank's memory at every new best."""
    monkeypatch.setattr(checkpoint, "gather_optimizer", None)
    checkpoint.save_best(tmp_path, [learner()], step=1)
    assert Policy(str(tmp_path / "best")) and not (tmp_path / "best" / "trainer.pt").exists()
