"""The loop: one rank equals two, a resumed run equals one that never stopped, and nothing is lost on the way."""
import asyncio
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL_RUN, learner, lines
from safetensors.torch import load_file

import runs
import tasks
import train
from designer import Design
from executor import Execution
from policy import EngineError, Policy, decode
from rollout import Tree
from sandbox import Sandbox

def start(*arguments, launcher=(), **kwargs):
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "train.py"), *SMALL_RUN, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process, expected=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == expected, out + err
    return out, err


def weights(out):
    return load_file(out / "checkpoint" / "model.safetensors")


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
    process = start("--steps", 6, "--keep-every", 3, "--out", out)
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
    kept = [load_file(out / folder / "model.safetensors") for folder in ("steps/3", "steps/6", "checkpoint")]
    assert all(torch.equal(kept[1][name], kept[2][name]) for name in kept[2]) and not all(torch.equal(kept[0][name], kept[2][name]) for name in kept[2])
    assert sorted(path.name for path in (out / "steps").iterdir()) == ["3", "6"] and not (out / "steps" / "3" / "trainer.pt").exists()


def test_killed_and_resumed_equals_straight(straight, tmp_path):
    """kill -9 before the first checkpoint, from which it starts again, and once more behind it: bit for bit the run that was never stopped."""
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 2)
    for steps in (1, 3):
        wait_for_steps(process, out, steps)
        process.kill()
        process.wait()
        assert (runs.find(out) is None) == (steps == 1)
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--out", str(out), "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finish(process)
    expected, found = weights(straight[0]), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert timeless(lines(out)) == timeless(lines(straight[0]))


def test_two_policies(tmp_path):
    """Each role's weights move in its own phases and stay bit for bit in the other's; a resumed run is the straight one."""
    out, flags = tmp_path / "run", ("--policies", "two", "--keep-every", 1, "--save-every", 1, "--phase-steps", 1, "--no-eval-fixed")
    straight = start("--steps", 3, "--out", tmp_path / "straight", *flags)
    finish(start("--steps", 2, "--out", out, *flags))
    finish(start("--steps", 3, "--out", out, *flags, "--resume"))
    finish(straight)
    begin, parts = load_file(ROOT / "tiny" / "model.safetensors"), ("executor", "designer")
    kept = [{"executor": begin, "designer": begin}] + [
        {role: load_file(out / "steps" / str(step) / ("designer" if role == "designer" else "") / "model.safetensors") for role in parts} for step in (1, 2, 3)]
    moved = [{role for role in parts if any(not torch.equal(before[role][name], after[role][name]) for name in begin)} for before, after in zip(kept, kept[1:])]
    assert moved == [{"executor"}, {"designer"}, {"executor"}]
    assert all(row["anchor_kl"] == 0 and row["trained_tokens"] > 0 for row in lines(out))
    for folder in ("checkpoint", "checkpoint/designer"):
        one, other = (load_file(path / folder / "model.safetensors") for path in (out, tmp_path / "straight"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_executor_alone_under_a_fixed_design(tmp_path):
    """And killed between a checkpoint and what comes after it, the model kept and the evaluation: a resumed run makes up for both."""
    flags = ("--out", tmp_path, "--fixed-design", "coder", "--stage", "executor", "--eval-every", 1, "--keep-every", 1)
    finish(start("--steps", 1, *flags))
    row, = lines(tmp_path)
    assert set(row["structures"]) == {"single+python"} and row["trained_tokens"] > 0 and row["eval_accuracy"] == pytest.approx(row["eval_fixed"]["coder"])
    assert all(set(part["designs"]) == {"single+python"} for part in row["eval_families"].values())
    kept = load_file(tmp_path / "steps" / "1" / "model.safetensors")
    shutil.rmtree(tmp_path / "steps")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**row, "eval_accuracy": -1.0, "eval_before": row["eval_before"]}) + "\n")
    finish(start("--steps", 2, *flags, "--no-eval-fixed", "--resume"))
    first, second = lines(tmp_path)
    assert first == row and second["eval_accuracy"] >= 0 and all(torch.equal(tensor, kept[name]) for name, tensor in load_file(tmp_path / "steps" / "1" / "model.safetensors").items())


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


TORCHRUN = ("-m", "torch.distributed.run")
TWO = (*TORCHRUN, "--standalone", "--nproc_per_node", "2")
# In fp64, as in fp32 AdamW makes steps of full size of gradients that are rounding alone: a few of 860,000 parameters then part by 2e-5.
EXACT = ("--dtype", "float64", "--no-eval-fixed", "--steps", 4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Four steps on two ranks of one node, with DDP: what the other ways to be two must equal."""
    out = tmp_path_factory.mktemp("two") / "run"
    finish(start(*EXACT, "--out", out, launcher=TWO))
    return out


def largest_difference(a, b):
    a, b = weights(a), weights(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_ranks_equal_one(two, tmp_path):
    """The same questions on one rank and on two: parameters differ by less than 1e-6 after 4 steps, both roles trained."""
    finish(start(*EXACT, "--out", tmp_path / "one"))
    assert largest_difference(tmp_path / "one", two) < 1e-6
    before, after = load_file(ROOT / "tiny" / "model.safetensors"), weights(two)
    assert max((after[name] - before[name]).abs().max().item() for name in after) > 1e-4
    assert [row["tokens"] for row in lines(tmp_path / "one")] == [row["tokens"] for row in lines(two)]


def test_two_policies_on_two_ranks_equal_those_on_one(tmp_path):
    for name, launcher in (("one", ()), ("two", TWO)):
        finish(start(*EXACT, "--policies", "two", "--out", tmp_path / name, launcher=launcher))
    start_of_all = load_file(ROOT / "tiny" / "model.safetensors")
    for place in ("checkpoint", "checkpoint/designer"):
        one, both = (load_file(tmp_path / name / place / "model.safetensors") for name in ("one", "two"))
        assert max((one[name] - both[name]).abs().max().item() for name in one) < 1e-6
        assert max((one[name] - start_of_all[name]).abs().max().item() for name in one) > 1e-4


def test_two_nodes_equal_one(two, tmp_path):
    """Two torchrun agents on loopback, one rank each: the same as one node with two ranks."""
    out, port = tmp_path / "run", free_port()
    nodes = [start(*EXACT, "--out", out, launcher=(*TORCHRUN, "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1", "--master_addr",
                                                         "127.0.0.1", "--master_port", str(port))) for node in range(2)]
    for node in nodes:
        finish(node)
    assert largest_difference(out, two) < 1e-12
    assert timeless(lines(out))[-1]["tokens"] == lines(two)[-1]["tokens"]


def test_sharding_equals_ddp_also_after_a_resume(two, tmp_path):
    """--shard on two ranks: the same weights as DDP, also when it is stopped half way and goes on from its checkpoint."""
    out = tmp_path / "run"
    finish(start(*EXACT[:-1], 2, "--out", out, "--shard", launcher=TWO))
    finish(start(*EXACT, "--out", out, "--resume", "--shard", launcher=TWO))
    assert largest_difference(out, two) < 1e-12
    assert [row["tokens"] for row in lines(out)] == [row["tokens"] for row in lines(two)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks_of(launcher) -> dict:
    """RANK -> process id of the children of a torchrun."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"PPid:\t{launcher.pid}\n" in (folder / "status").read_text():
                environment = dict(item.split("=", 1) for item in (folder / "environ").read_text().split("\0") if "=" in item)
                found[environment["RANK"]] = int(folder.name)
        except (OSError, KeyError):  # it ended just now, or is no rank
            continue
    return found


@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_killed_rank_ends_the_job_and_it_can_go_on(tmp_path, victim):
    """kill -9 on one rank: the job ends within a minute, says what happened, and --resume goes on from the last checkpoint."""
    out = tmp_path / "run"
    process = start("--steps", 50, "--out", out, "--save-every", 1, "--no-eval-fixed", launcher=TWO)
    wait_for_steps(process, out, 2)
    killed = time.monotonic()
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    said, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert f"rank      : {victim}" in err and "SIGKILL" in err
    done = runs.read(runs.find(out))["step"]
    assert done >= 1
    if victim == "0":
        return
    assert "--resume" in said + err
    finish(start("--steps", done + 1, "--out", out, "--resume", launcher=TWO))
    assert lines(out)[-1]["step"] == done and "eval_accuracy" in lines(out)[-1]


def test_an_engine_that_fails_in_mid_rollout_spoils_that_batch_alone(tmp_path, monkeypatch):
    """The second batch of the second step runs out of memory: what was in it is left out and counted, and the run goes on."""
    trainer, batches = small_trainer(tmp_path), []
    trainer.models[0].engine.max_batch = 4

    def fails(policy, requests, model):
        batches.append(trainer.step)
        if trainer.step == 1 and batches.count(1) == 2:
            raise RuntimeError("out of memory, on purpose")
        return decode(policy, requests, model)

    monkeypatch.setattr("policy.decode", fails)
    run_here(trainer)
    spoiled = [row["infrastructure"] for row in lines(tmp_path)]
    assert len(spoiled) == 3 and spoiled[0] == spoiled[2] == 0 < spoiled[1] < 12


def test_an_engine_that_is_gone_stops_the_run_and_keeps_what_is_done(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path)

    def fails(policy, requests, model):
        if trainer.step == 1:
            raise RuntimeError("device lost, on purpose")
        return decode(policy, requests, model)

    monkeypatch.setattr("policy.decode", fails)
    with pytest.raises(EngineError, match="step 1 .*device lost.*--resume"):
        run_here(trainer)
    assert runs.read(runs.find(tmp_path))["step"] == 1 and len(lines(tmp_path)) == 1


def small_trainer(out):
    config = train.Config(questions=3, designs=2, executions=2, steps=3, eval_size=1, eval_fixed=False, train_size=30, out=str(out))
    return train.Trainer(config, runs.open_folder(config, 0), 0, "cpu")


def run_here(trainer):
    async def go():
        async with Sandbox() as sandbox:
            await trainer.train(sandbox)

    try:
        asyncio.run(go())
    finally:
        trainer.records.close()


@pytest.mark.parametrize("crash_at", ["save", "rename current", "rename new", "never"])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch, crash_at):
    """Stop at every stage of the second save: a whole checkpoint is found, the old or the new."""

    class Killed(BaseException):
        pass

    subject = learner()
    runs.save(tmp_path, [(subject, subject.state())], 1)
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
        runs.save(tmp_path, [(subject, subject.state())], 2)
    except Killed:
        pass
    monkeypatch.undo()
    found = runs.find(tmp_path)
    assert runs.restore(runs.read(found), subject) == (2 if crash_at == "never" else 1) and Policy(str(found))
    runs.keep(tmp_path, 1)
    runs.keep(tmp_path, 1)  # again, as a run does that goes on from here
    assert Policy(str(tmp_path / "steps" / "1")) and not (tmp_path / "steps" / "1" / "trainer.pt").exists()
    runs.save(tmp_path, [(subject, subject.state())], 3)  # and the next save works
    assert runs.read(runs.find(tmp_path))["step"] == 3


def test_a_program_is_evaluated_by_all_its_tests_and_trained_by_their_share():
    for kind, score in (("code", 0.0), ("rg", 0.5)):
        trees = [Tree(tasks.Question("q", "?", "", kind=kind), (Design("x"),), ((Execution((), "answer", "answered"),),), torch.tensor([[0.5]]), torch.tensor([[True]]))]

        async def grow(*_):
            return trees

        assert runs.facts(trees)[0]["reward"] == 0.5 and asyncio.run(train.Trainer.valid(None, grow, [], ()))[0]["reward"] == score


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    subject = learner()
    runs.save(tmp_path, [(subject, subject.state())], 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(tasks.BadInput, match="No space left"):
        runs.save(tmp_path, [(subject, subject.state())], 2)
    assert runs.read(runs.find(tmp_path))["step"] == 1 and not (tmp_path / "checkpoint.new").exists()


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
