"""No evaluation asks a model what it was trained on, whatever the file is called by then."""

import json
import shutil

import pytest
from conftest import ROOT
from runs import train_run

import eval as evaluation
import sft
import tasks
from lib import trained_on
from lib.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(file of questions, folder of a run that was trained on it)."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "mine.jsonl"
    rows = [{"question": f"What is {a} * 7?", "answer": a * 7} for a in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    train_run("--tasks", file, "--steps", "1", "--eval-every", "0", "--out", folder / "run")
    return file, folder / "run"


def load_sets(model, file, **flags):
    return evaluation.load_sets(evaluation.Config(model=str(model), tasks=str(file), **flags))


def test_what_was_trained_on_is_refused(trained, tmp_path):
    file, run = trained
    num_trained = len(tasks.load(str(file), "train"))
    copy = tmp_path / "benchmark.jsonl"
    shutil.copyfile(file, copy)
    moved = shutil.copytree(run / "checkpoint", tmp_path / "moved")
    for known in (file, copy):
        with pytest.raises(UserError, match=f"trained on {num_trained} of these 40") as error:
            load_sets(moved, known)
        assert "--heldout" in str(error.value)


def test_the_side_that_is_held_out_may_be_asked(trained):
    file, run = trained
    ((_, asked),) = load_sets(run / "checkpoint", file, heldout=True)
    held_out = tasks.load(str(file), "heldout")
    assert {q.prompt for q in asked} == {q.prompt for q in held_out} and len(asked) > 2
    assert not trained_on.read([str(run)]) & {trained_on.hash_of(q.prompt) for q in asked}


def test_other_models_may_be_asked_everything(trained):
    file, _ = trained
    for model in ("tiny", "http://localhost:1/v1#name"):
        ((_, asked),) = load_sets(model, file)
        assert len(asked) == 40


def test_a_default_run_may_be_evaluated_on_its_own_set(tmp_path):
    """Generated sets are asked on their other side."""
    questions = tasks.load("registry", "train", 0, 6000)
    trained_on.write(tmp_path, [], [question.prompt for question in questions])
    ((_, asked),) = load_sets(tmp_path, "registry")
    assert len(asked) == 100


def test_it_is_known_after_another_training_too(trained, tmp_path):
    file, run = trained
    trained_on.write(tmp_path, [str(run / "checkpoint"), None], ["What is 2 + 2?"])
    assert trained_on.hash_of("What is 2 + 2?") in trained_on.read([str(tmp_path)])
    with pytest.raises(UserError, match="trained on"):
        load_sets(tmp_path, file)
    with pytest.raises(UserError, match="trained on"):
        load_sets(ROOT / "tiny", file, designer=str(tmp_path))


def test_fine_tuning_keeps_what_its_samples_ask(trained, tmp_path, policy):
    file, run = trained
    (question, *_) = tasks.load(str(file), "heldout")
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": question.prompt}]
    sft.write(policy, tmp_path / "model", "", [("designer", messages, "submit(1)")])
    with pytest.raises(UserError, match="trained on 1 of these"):
        load_sets(tmp_path / "model", file, heldout=True)
