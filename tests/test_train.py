"""The loop: one rank equals two, a resumed run equals one that never stopped, and nothing is lost on the way."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import runs
import tasks
import train
from policy import Policy, Sample

SMALL = ["--questions", "6", "--designs", "2", "--executions", "2", "--eval-size", "6", "--threads", "1", "--phase-steps", "2"]


def start(*arguments, launcher=(), **kwargs):
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "train.py"), *SMALL, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process, expected=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == expected, out + err
    return out, err


def weights(out):
    return load_file(out / "checkpoint" / "model.safetensors")


def lines(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(rows):
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def wait_for_steps(process, out, count):
    deadline = time.monotonic() + 120
    while len(lines(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without a stop: what the interrupted runs must equal."""
    out = tmp_path_factory.mktemp("straight") / "run"
    process = start("--steps", 6, "--out", out)
    said = finish(process)[0]
    return out, said


def test_a_run_leaves_its_records(straight):
    out, said = straight
    rows = lines(out)
    assert [row["step"] for row in rows] == list(range(6))
    for row in rows:
        assert {"step", "reward", "designer_reward", "executor_reward", "trained_roles", "seconds", "tokens"} <= set(row)
        assert sum(row["statuses"].values()) == 24 and row["infrastructure"] == 0
    assert [row["trained_roles"] for row in rows] == [["executor"]] * 2 + [["designer"]] * 2 + [["executor"]] * 2
    assert "eval_accuracy" in rows[0] and "eval_accuracy" in rows[-1] and set(rows[-1]["eval_fixed"]) == set(rows[0]["eval_fixed"])
    assert said.strip().splitlines()[-1].startswith("held-out accuracy before ")
    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 6 and len(episodes[0]["designs"]) == 2 and len(episodes[0]["designs"][0]["executions"]) == 2
    assert (out / "curves.png").stat().st_size > 10_000 and json.loads((out / "config.json").read_text())["questions"] == 6
    assert Policy(str(out / "checkpoint")).model is not None


def test_killed_and_resumed_equals_straight(straight, tmp_path):
    """kill -9 in mid-run, --resume: the same weights, bit for bit, and the same records."""
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 2)
    wait_for_steps(process, out, 3)
    process.kill()
    process.wait()
    finish(subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--out", str(out), "--resume"], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True))
    expected, found = weights(straight[0]), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert timeless(lines(out)) == timeless(lines(straight[0]))


def test_killed_before_the_first_checkpoint_starts_again(straight, tmp_path):
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 0)
    wait_for_steps(process, out, 1)
    process.kill()
    process.wait()
    finish(start("--out", out, "--resume"))
    assert timeless(lines(out)) == timeless(lines(straight[0]))


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(straight, tmp_path):
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 0)
    wait_for_steps(process, out, 1)
    process.send_signal(signal.SIGINT)
    said, err = finish(process, expected=130)
    assert "--resume" in said and "Traceback" not in said + err
    done = len(lines(out))
    assert runs.read(runs.find(out))["step"] == done
    finish(start("--steps", 6, "--out", out, "--resume"))
    assert all(torch.equal(a, b) for a, b in zip(weights(straight[0]).values(), weights(out).values()))


def test_two_ranks_equal_one(tmp_path):
    """The same questions on one rank and on two: parameters differ by less than 1e-5 after 4 steps, both roles trained."""
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start("--steps", 4, "--out", one))
    finish(start("--steps", 4, "--out", two, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")))
    a, b, before = weights(one), weights(two), load_file(ROOT / "tiny" / "model.safetensors")
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5
    assert max((a[name] - before[name]).abs().max().item() for name in a) > 1e-4
    assert [row["tokens"] for row in lines(one)] == [row["tokens"] for row in lines(two)]


@pytest.mark.parametrize("crash_at", ["save", "rename current", "rename new", "never"])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch, crash_at):
    """Stop at every stage of the second save: a whole checkpoint is found, the old or the new."""

    class Killed(BaseException):
        pass

    subject = learner()
    runs.save(tmp_path, subject, 1)
    renames, rename, save = [], os.rename, torch.save

    def crash_rename(source, target):
        renames.append(source)
        if crash_at == ("rename current" if len(renames) == 1 else "rename new"):
            raise Killed
        rename(source, target)

    def crash_save(state, path):
        save({"half": 1}, path)
        raise Killed

    monkeypatch.setattr(os, "rename", crash_rename)
    if crash_at == "save":
        monkeypatch.setattr(torch, "save", crash_save)
    try:
        runs.save(tmp_path, subject, 2)
    except Killed:
        pass
    monkeypatch.undo()
    found = runs.find(tmp_path)
    assert runs.restore(runs.read(found), subject) == (2 if crash_at == "never" else 1) and Policy(str(found))
    runs.save(tmp_path, subject, 3)  # and the next save works
    assert runs.read(runs.find(tmp_path))["step"] == 3


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    subject = learner()
    runs.save(tmp_path, subject, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(tasks.BadInput, match="No space left"):
        runs.save(tmp_path, subject, 2)
    assert runs.read(runs.find(tmp_path))["step"] == 1 and not (tmp_path / "checkpoint.new").exists()


def learner(**changes):
    return train.Learner(Policy(str(ROOT / "tiny")), train.Config(**changes))


def batch(advantages):
    generator = torch.Generator().manual_seed(0)
    return [Sample((5, 6, 7), tuple(torch.randint(5, 300, (4 + i,), generator=generator).tolist()), (-2.0,) * (4 + i), advantage, "executor")
            for i, advantage in enumerate(advantages)]


def state(subject):
    return {name: p.detach().clone() for name, p in subject.policy.model.named_parameters()}


def test_equal_rewards_change_nothing():
    """A step whose groups are all equal has an exactly zero gradient: the weights stay, bit for bit."""
    subject = learner()
    before = state(subject)
    found = subject.update(batch([0.0] * 4))
    assert found["grad_norm"] == 0.0 and all(torch.equal(before[name], p) for name, p in subject.policy.model.named_parameters())
    assert subject.update([])["trained_tokens"] == 0


def test_zero_advantages_count_as_tokens():
    """Samples that teach nothing are not computed, but the mean is over them too."""
    with_zeros, without = learner(), learner()
    a = with_zeros.update(batch([1.0, -1.0, 0.0, 0.0]))
    b = without.update(batch([1.0, -1.0]))
    assert a["loss"] == pytest.approx(b["loss"] * 9 / 22, rel=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"] * 9 / 22, rel=1e-4)


def test_micro_batches_do_not_change_the_update():
    one, eight = learner(batch_tokens=100_000), learner(batch_tokens=1)
    advantages = [1.0, -1.0, 0.5, 0.25, -0.5, 2.0, -2.0, 0.1]
    a, b = one.update(batch(advantages)), eight.update(batch(advantages))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    subject = learner()
    before = state(subject)
    for _ in range(2):
        assert subject.update(batch([float("nan"), 1.0]))["skipped"] == 1
    assert all(torch.equal(before[name], p) for name, p in subject.policy.model.named_parameters())
    with pytest.raises(FloatingPointError, match="three steps"):
        subject.update(batch([float("nan"), 1.0]))
    recovered = learner()
    recovered.update(batch([float("nan")]))
    assert recovered.update(batch([1.0, -1.0]))["skipped"] == 0 and recovered.bad_steps == 0


def test_the_kl_term_pulls_back():
    """At the start the policy is its reference: no KL. After an update away from it, the KL gradient is there."""
    subject = learner(kl=1.0)
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] < 1e-6
    for _ in range(3):
        subject.update(batch([1.0, -1.0]))
    assert subject.update(batch([0.0, 0.0]))["grad_norm"] > 1e-4


def test_every_step_has_the_same_questions_in_every_run(tmp_path):
    first, again = (train.Trainer(train.Config(questions=8, train_size=64), tmp_path / name, 0, "cpu") for name in ("a", "b")
                    if not (tmp_path / name).mkdir())
    order = [[q.id for q in first.batch_of(step)] for step in range(25)]
    assert order == [[q.id for q in again.batch_of(step)] for step in range(25)]
    assert sorted(sum(order[:8], [])) == sorted(q.id for q in first.pool)  # one pass: each question once
    assert sum(order[:8], []) != sum(order[8:16], [])
    assert all(sorted(q.family for q in first.batch_of(step)) == ["compute"] * 4 + ["recall"] * 2 + ["relay"] * 2 for step in range(5))


def test_no_run_is_written_over(straight):
    out, _ = straight
    _, err = finish(start("--steps", 1, "--out", out), expected=2)
    assert "--resume" in err and len(err.strip().splitlines()) == 1
    assert pathlib.Path(out / "metrics.jsonl").exists()
