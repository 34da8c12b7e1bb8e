"""Math answers: firm cases get their verdicts, nothing hangs, and no answer is ever run."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SHARED, needs_shared

import tasks
from benchmarks.math_grading import (
    EVALUATED,
    REFUSED,
    MathWorker,
    canonical_integer,
    grade_math,
    grade_rg,
    is_plain,
)
from lib.errors import SandboxError


@needs_shared
def test_every_firm_case_gets_its_verdict():
    lines = (SHARED / "data" / "math_cases.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    firm = [row for row in rows if row["kind"] == "firm"]
    wrong = []
    for row in firm:
        if bool(grade_math(row["gold"], row["prediction"])) != row["expected"]:
            wrong.append(row["id"])
    assert len(firm) > 60
    assert wrong == []


@pytest.mark.parametrize(
    "gold, text, expected",
    [
        # Where the answer is
        ("5", r"First \boxed{3}. Wait: \boxed{5}.", 1),
        ("42", "I tried 42 cases but cannot finish.", 0),
        ("5", r"\boxed{5", 0),
        ("5", r"\boxed{}", 0),
        ("5", r"\boxed{{{5}", 0),
        ("3", r"\fbox{3}", 1),
        ("-3", "Answer: -3", 1),
        ("7", "answer:\n7", 0),
        ("5", "Answer: **5**", 1),
        # Integers
        ("1000", r"\boxed{1,000}", 1),
        ("1000", r"\boxed{1\,000}", 1),
        ("12", r"\boxed{1,2}", 0),
        ("0", r"\boxed{-0}", 1),
        ("1", r"\boxed{1.0}", 1),
        ("9" * 5000, "\\boxed{" + "9" * 5000 + "}", 1),
        ("5", r"\boxed{5}" + "\ud800", 1),
        ("12", "\\boxed{12}\x00", 1),
        # Not the integer, though it may equal it
        ("5", r"\boxed{5\%}", 0),
        ("10", r"\boxed{\text{ten}}", 0),
        ("256", r"\boxed{12*13+100}", 0),
        ("5", r"\boxed{7=5}", 0),
        ("5", r"\boxed{5 \approx 7}", 0),
        ("5", r"\boxed{5\text{ or 6}}", 0),
        ("5", r"\boxed{5\text{ million}}", 0),
        ("3", r"\boxed{3\mathrm{i}}", 0),
        ("120", r"\boxed{5!}", 0),
        ("42", r"\boxed{I tried 17, maybe 42}", 0),
        # With a name
        ("3", r"\boxed{x=3}", 1),
        ("256", r"\boxed{x=256}", 1),
        # math-verify
        (r"\frac{1}{2}", r"\boxed{0.5}", 1),
        (r"\sqrt{2}", r"\boxed{1.4142}", 0),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
        ("0.0000002", r"\boxed{0.0000004}", 0),
    ],
)
def test_more_cases(gold, text, expected):
    assert grade_math(gold, text) == expected


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9}}", "(10^8)!", r"\int_0^", "{" * 500, "((((", r"\frac{1}{0}", "\x00", "10^{10^{10}}"],
)
def test_no_answer_hangs_or_raises(answer):
    started = time.monotonic()
    assert grade_math(r"\sqrt{2}", "\\boxed{" + answer + "}") == 0.0
    assert time.monotonic() - started < 10
    assert grade_math(r"\frac{1}{2}", r"\boxed{\frac{2}{4}}") == 1.0  # and the next check works


def test_a_worker_that_is_too_slow_or_dead_is_replaced():
    worker = MathWorker(seconds=0.5)
    try:
        assert not worker.check(r"\sqrt{2}", "9^{9^{9}}")
        assert worker.process is None  # killed
        worker.seconds = 8.0
        assert worker.check(r"\frac{1}{2}", r"\frac{2}{4}")
        worker.process.kill()
        worker.process.wait()
        assert worker.check(r"\frac{1}{2}", r"\frac{2}{4}")
    finally:
        worker.close()


def test_a_worker_that_nobody_waits_for_ends():
    """Its trainer was killed while it was busy."""
    program = "import math_worker; math_worker.CPU_SECONDS = 1; math_worker.main()"
    question = json.dumps([r"\sqrt{2}", "9^{9^{9}}"]).encode() + b"\n"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "benchmarks", input=question, timeout=60
    )
    assert process.returncode == -signal.SIGXCPU


def test_it_is_asked_beside_a_thousand_open_files():
    """A rollout of many executions has as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2000), hard))
    worker = MathWorker()
    files = [open(os.devnull) for _ in range(1100)]
    try:
        assert worker.check(r"\frac{1}{2}", r"\frac{2}{4}")
    finally:
        for file in files:
            file.close()
        worker.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_shared
@pytest.mark.parametrize("name", ["aime24", "aime25", "gsm8k"])
def test_integer_golds_are_equal_to_themselves(name):
    for question in tasks.load(name, "all", 0, 60, str(SHARED / "data")):
        assert grade_math(question.answer, f"\\boxed{{{question.answer}}}") == 1.0, question
        assert canonical_integer(question.answer) is not None


@needs_shared
@pytest.mark.parametrize("name", ["olympiadbench", "math500"])
def test_golds_are_equal_to_themselves(name):
    for question in tasks.load(name, "all", 0, 80, str(SHARED / "data")):
        assert grade_math(question.answer, f"\\boxed{{{question.answer}}}") == 1.0, question


@needs_shared
@pytest.mark.parametrize(
    "name, count", [("gsm8k", 1319), ("math500", 500), ("aime24", 30), ("aime25", 30)]
)
def test_local_benchmarks(name, count):
    questions = tasks.load(name, "all", 0, 5000, str(SHARED / "data"))
    assert len(questions) == count
    assert all(question.prompt and question.answer for question in questions)
    if name == "gsm8k":
        assert all(canonical_integer(question.answer) for question in questions)
    for question in questions[:20]:
        assert grade_math(question.answer, f"\\boxed{{{question.answer}}}")


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {}')",
        "print(1)",
        "9**9**9",
        "[0]*9999999999",
        "().__class__",
        "entry['answer']",
    ],
)
def test_reasoning_gym_does_not_run_answers(attack, tmp_path):
    pwned = tmp_path / "pwned"
    reply = "\\boxed{" + attack.replace("{}", str(pwned)) + "}"
    for question in tasks.load("rg:" + ",".join(sorted(EVALUATED)), "heldout", 0, 6):
        assert tasks.grade(question, reply) < 0.2
    assert not pwned.exists()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_generators_whose_scorers_run_answers_are_refused(name):
    with pytest.raises(tasks.UserError, match="as code"):
        tasks.load(f"rg:{name}", "heldout", 0, 6)


def test_reasoning_gym_scores_its_own():
    for question in tasks.load("rg:gcd,leg_counting", "heldout", 0, 6):
        assert grade_rg(question, f"\\boxed{{{question.entry['answer']}}}") == 1.0
        assert grade_rg(question, "no box") == 0.0
        assert grade_rg(question, r"\boxed{77777}") < 0.5


@pytest.mark.parametrize("answer", ["none", "", "[[1]]", "a|b", "{}", "1 2", "-", "nan"])
def test_a_scorer_that_raises_gives_nothing(answer):
    """Some of reasoning-gym's do, for an answer that is not of the kind that they expect."""
    for name in ("prime_factorization", "game_of_life", "coin_flip"):
        (question,) = tasks.load(f"rg:{name}", "train", 0, 1)
        assert grade_rg(question, f"\\boxed{{{answer}}}") < 0.5


def test_a_worker_that_does_not_start_is_infrastructure(monkeypatch):
    def no_process(*arguments, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("benchmarks.math_grading.subprocess.Popen", no_process)
    with pytest.raises(SandboxError, match="no process for math-verify"):
        MathWorker().check("1", "2")


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("(3 + 4) * 12", True),
        ("[['Q', '_'], ['_', 'Q']]", True),
        ("1.5", True),
        ("2 ** 3", False),
        ("a.b", False),
        ("f(1)", False),
        ("[1][0]", False),
        ("__x", False),
        ("lambda: 0", False),
        ("1 * " * 50 + "1", False),
        ("1 + " * 500 + "1", False),
    ],
)
def test_what_an_evaluator_may_see(answer, expected):
    assert is_plain(answer) is expected
