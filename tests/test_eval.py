"""Evaluation: the table, the files, one question shown."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import QUESTION, ROOT, SHARED, Scripted, grow, needs_shared

import eval as evaluation
from policy import EngineError


def command(*arguments, cwd):
    process = subprocess.run([sys.executable, str(ROOT / "eval.py"), *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout


@needs_shared
def test_benchmarks_of_any_kind_in_one_table(tmp_path):
    """A path and reasoning-gym generators, all modes. A tiny model scores near 0 on them, and that is honest."""
    said = command("--model", "tiny", "--tasks", f"{SHARED / 'data' / 'gsm8k_test.jsonl'},rg:gcd,leg_counting", "--limit", 3, "--design-tokens", 40,
                   "--reply-tokens", 20, "--max-calls", 3, "--modes", "single,self-consistency,metaagent", "--out", tmp_path, cwd=tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["mode"].split(" (")[0] for row in rows] == ["single", "self-consistency", "metaagent"] * 3
    assert all(len(row["correct"]) == 3 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert said.count("| ") > 20 and (tmp_path / "results.md").read_text().strip() in said


def test_ask_shows_the_run(tmp_path):
    said = command("--ask", "What is 37 * 52 + 418?", "--seed", 1, cwd=tmp_path)
    assert all(part in said for part in ("question  What is 37 * 52 + 418?", "design", "outcome", "cost")), said


def test_interval_and_majority():
    low, high = evaluation.interval95([0.0, 1.0] * 50)
    assert 0.38 <= low <= 0.42 and 0.58 <= high <= 0.62

    class Run:
        def __init__(self, answer):
            self.answer = answer

    assert evaluation.majority([Run(r"\boxed{1}"), Run(r"\boxed{2}"), Run(r"\boxed{2}"), Run(None), Run("no box")]) == r"\boxed{2}"
    assert evaluation.majority([Run(None)]) is None


def test_infrastructure_is_left_out_and_never_a_zero(policy):
    said = iter([r"\boxed{42}", EngineError("down"), r"\boxed{42}"])
    trees = grow(policy, Scripted(policy, lambda prompt: next(said)), [QUESTION] * 3, 1, 1, fixed='submit(Agent("a", "i")(question))')
    row = evaluation.summarise("x", "single", trees)
    assert row.accuracy == 1.0 and len(row.correct) == 2
    assert torch.stack([t.valid_M_N for t in trees]).sum() == 2
    with pytest.raises(evaluation.SandboxError, match="down"):
        evaluation.summarise("x", "single", grow(policy, Scripted(policy, lambda prompt: EngineError("down")), [QUESTION], 1, 1,
                                                 fixed='submit(Agent("a", "i")(question))'))
