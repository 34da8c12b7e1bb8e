"""The loop: a resumed run equals one that never stopped, and nothing is lost on the way."""

import asyncio
import json
import pathlib
import signal
from types import SimpleNamespace

import pytest
from conftest import Config, lines
from runs import finish, same, start, timeless, tiny_weights, train_run, wait_for_steps, weights

import tasks
import train
from data_types import Design, Execution, Tree
from engines.hf import decode
from executor import Runtime
from lib import checkpoint, launch
from lib.errors import EngineError, UserError
from lib.heldout import evaluate_heldout
from lib.metrics import execution_stats
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox

# Right about half of the time: every step has samples.
ARITHMETIC = ["--model", "tiny/arithmetic", "--tasks", "arithmetic"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without a stop: what the interrupted runs must equal."""
    out = tmp_path_factory.mktemp("straight") / "run"
    stdout, _ = finish(start("--steps", 6, "--out", out))
    return out, stdout


def test_a_run_leaves_its_records(straight):
    out, stdout = straight
    rows = lines(out)
    assert [row["step"] for row in rows] == list(range(6))
    contract = {"step", "reward", "designer_reward", "executor_reward", "trained_roles"}
    for row in rows:
        assert contract | {"seconds", "tokens"} <= set(row)
        assert sum(row["statuses"].values()) == 24 and row["infra_errors"] == 0
    roles = [row["trained_roles"] for row in rows]
    assert roles == [["executor"]] * 2 + [["designer"]] * 2 + [["executor"]] * 2
    assert "eval_accuracy" in rows[0] and "eval_accuracy" in rows[-1]
    assert set(rows[-1]["eval_fixed"]) == set(rows[0]["eval_fixed"])
    assert stdout.strip().splitlines()[-1].startswith("held-out accuracy before ")

    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [episode["step"] for episode in episodes] == list(range(6))
    assert len(episodes[0]["designs"]) == 2
    assert len(episodes[0]["designs"][0]["executions"]) == 2
    assert (out / "curves.png").stat().st_size > 10_000
    assert json.loads((out / "config.json").read_text())["questions"] == 6
    assert Policy(str(out / "checkpoint")).model is not None


def test_killed_and_resumed_equals_straight(straight, tmp_path):
    """kill -9 before the first checkpoint, from which it starts again, and once more behind it: bit
    for bit the run that was never stopped."""
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 2)
    for steps in (1, 3):
        wait_for_steps(process, out, steps)
        process.kill()
        process.wait()
        assert (checkpoint.find(out) is None) == (steps == 1)
        process = start("--out", out, "--resume", flags=())
    finish(process)
    assert same(weights(straight[0]), weights(out))
    assert timeless(lines(out)) == timeless(lines(straight[0]))


def test_two_policies(tmp_path):
    """Each role's weights move in its own phases and stay bit for bit in the other's; a resumed run
    is the straight one."""
    flags = ("--save-every", 1, "--phase-steps", 1, "--tasks", "arithmetic")
    flags += ("--designer", "tiny/arithmetic", "--executor", "tiny/arithmetic")
    out = tmp_path / "resumed"
    train_run("--steps", 3, "--out", tmp_path / "straight", *flags)
    folders = {"executor": "checkpoint", "designer": "checkpoint/designer"}
    before = {role: tiny_weights("tiny/arithmetic") for role in folders}
    moved = []
    for steps in (1, 2, 3):
        resume = ["--resume"] if steps > 1 else []
        train_run("--steps", steps, "--out", out, *flags, *resume)
        after = {role: weights(out, folder) for role, folder in folders.items()}
        moved.append({role for role in folders if not same(before[role], after[role])})
        before = after
    assert moved == [{"executor"}, {"designer"}, {"executor"}]
    assert all(row["trained_tokens"] > 0 for row in lines(out))
    for folder in folders.values():
        assert same(weights(out, folder), weights(tmp_path / "straight", folder))


def test_the_executor_alone_under_a_fixed_design(tmp_path):
    """And killed between a checkpoint and its evaluation: a resumed run makes up for it."""
    flags = ["--out", tmp_path, "--designer", "hand:coder", "--stage", "executor"]
    flags += ["--eval-every", 1, *ARITHMETIC]
    train_run("--steps", 1, *flags)
    (row,) = lines(tmp_path)
    assert set(row["structures"]) == {"single+python"} and row["trained_tokens"] > 0
    assert row["eval_accuracy"] == pytest.approx(row["eval_fixed"]["coder"])
    for evaluation in row["eval_families"].values():
        assert set(evaluation["designs"]) == {"single+python"}

    spoiled = {**row, "eval_accuracy": -1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(spoiled) + "\n")
    train_run("--steps", 2, *flags, "--resume")
    first, second = lines(tmp_path)
    assert first == row and second["eval_accuracy"] >= 0


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(straight, tmp_path):
    out = tmp_path / "run"
    process = start("--steps", 6, "--out", out, "--save-every", 0)
    wait_for_steps(process, out, 1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = finish(process, expected=130)
    assert "--resume" in stdout and "Traceback" not in stdout + stderr
    assert checkpoint.read(checkpoint.find(out))["step"] == len(lines(out))
    train_run("--steps", 6, "--out", out, "--resume")
    assert same(weights(straight[0]), weights(out))


def small_trainer(out):
    config = Config(questions=3, designs=2, executions=2, steps=3, eval_size=1, out=str(out))
    return train.Trainer(config, launch.open_folder(config, 0), 0, "cpu")


def run_here(trainer):
    async def go():
        async with Sandbox() as sandbox:
            await trainer.train(sandbox)

    try:
        asyncio.run(go())
    finally:
        trainer.records.close()


def test_an_engine_that_fails_in_mid_rollout_spoils_that_batch_alone(tmp_path, monkeypatch):
    """The second batch of the second step runs out of memory: what was in it is left out and
    counted, and the run goes on."""
    trainer, batches = small_trainer(tmp_path), []
    trainer.engines[0].max_batch = 4

    def fails(policy, requests, model):
        batches.append(trainer.step)
        if trainer.step == 1 and batches.count(1) == 2:
            raise RuntimeError("out of memory, on purpose")
        return decode(policy, requests, model)

    monkeypatch.setattr("engines.hf.decode", fails)
    run_here(trainer)
    spoiled = [row["infra_errors"] for row in lines(tmp_path)]
    assert len(spoiled) == 3 and spoiled[0] == spoiled[2] == 0 < spoiled[1] < 12


def lose_device(monkeypatch, trainer, step):
    """From this step on the engine fails."""

    def fails(policy, requests, model):
        if trainer.step == step:
            raise RuntimeError("device lost, on purpose")
        return decode(policy, requests, model)

    monkeypatch.setattr("engines.hf.decode", fails)


def test_an_engine_that_is_gone_stops_the_run_and_keeps_what_is_done(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path)
    lose_device(monkeypatch, trainer, step=1)
    with pytest.raises(EngineError, match="step 1 .*device lost.*--resume"):
        run_here(trainer)
    assert checkpoint.read(checkpoint.find(tmp_path))["step"] == 1 and len(lines(tmp_path)) == 1


def test_a_program_is_evaluated_by_all_its_tests_and_trained_by_their_share(monkeypatch):
    """Half of the tests passed: reward 0.5; in an evaluation, nothing. Scores of rg sets stay."""
    for kind, accuracy in (("code", 0.0), ("rg", 0.5)):
        question = tasks.Question("q", "?", "", kind=kind)
        execution = Execution((), "answer", "answered", reward=0.5)

        tree = Tree(question, (Design("x"),), ((execution,),))

        async def answer_all(trainer, jobs):
            return {job: ([tree], execution_stats([tree]), 0) for job in jobs}

        monkeypatch.setattr("lib.heldout.answer_all", answer_all)
        trainer = SimpleNamespace(config=Config(), step=1, fixed_design=None, shown=None)
        evaluation = asyncio.run(evaluate_heldout(trainer))
        assert evaluation["eval_accuracy"] == accuracy


def test_an_evaluation_without_an_answer_is_no_zero(tmp_path, monkeypatch):
    """The engine fails for the evaluation at the end: the run stops, and no accuracy is written."""
    trainer = small_trainer(tmp_path)
    lose_device(monkeypatch, trainer, step=3)
    with pytest.raises(EngineError, match="step 3 failed.*--resume"):
        run_here(trainer)
    assert "eval_accuracy" not in lines(tmp_path)[-1]
    assert checkpoint.read(checkpoint.find(tmp_path))["step"] == 3


def test_answers_that_the_infrastructure_spoiled_are_counted(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path)
    trainer.heldout_questions = tasks.load("registry", "heldout", 0, 3)

    async def rollout(self, questions, *arguments):
        statuses = ["infra_error"] + ["answered"] * (len(questions) - 1)
        return [
            Tree(question, (Design("x"),), ((Execution((), "x", status, reward=1.0),),))
            for question, status in zip(questions, statuses)
        ]

    monkeypatch.setattr(Rollout, "rollout", rollout)
    trainer.rollout = Rollout(Runtime(None, None, None))
    trainer.step = 1
    evaluation = asyncio.run(evaluate_heldout(trainer))
    trainer.records.close()
    assert evaluation["eval_accuracy"] == evaluation["eval_greedy"] == 1.0
    assert evaluation["eval_infra_errors"] == 2  # one at each temperature


def test_every_step_has_the_same_questions_in_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TRAIN_QUESTIONS", 64)
    trainers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trainers.append(
            train.Trainer(
                Config(questions=8, model="tiny/arithmetic", tasks="arithmetic", out=str(tmp_path)),
                tmp_path / name,
                0,
                "cpu",
            )
        )
    first, again = trainers
    order = [[q.id for q in first.questions_of_step(step)] for step in range(25)]
    assert order == [[q.id for q in again.questions_of_step(step)] for step in range(25)]
    one_pass, next_pass = sum(order[:8], []), sum(order[8:16], [])
    assert sorted(one_pass) == sorted(q.id for q in first.questions) and one_pass != next_pass
    for step in range(5):
        families = sorted(q.family for q in first.questions_of_step(step))
        assert families == ["compute"] * 4 + ["recall"] * 2 + ["relay"] * 2


def test_no_run_is_written_over(straight):
    out, _ = straight
    _, stderr = finish(start("--steps", 1, "--out", out), expected=2)
    assert "--resume" in stderr and len(stderr.strip().splitlines()) == 1
    assert pathlib.Path(out / "metrics.jsonl").exists()


def test_a_data_file_that_changed_is_not_resumed_on(tmp_path):
    data, out = tmp_path / "sums.jsonl", tmp_path / "run"
    rows = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_run("--steps", 1, "--tasks", data, "--out", out)
    data.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    resume = ("--out", str(out), "--resume", "--steps", "2")
    with pytest.raises(UserError, match="--resume: the questions of --tasks .*sums.jsonl are oth"):
        train.main([*resume])
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train.main([*resume])
    assert len(lines(out)) == 2
