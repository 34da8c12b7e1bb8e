"""Loading and grading."""

import json
import time

import pytest
from conftest import SHARED, needs_shared

import tasks
from benchmarks.math_grading import canonical_integer, grade_math


@needs_shared
def test_every_firm_case_gets_its_verdict():
    rows = [
        json.loads(line) for line in (SHARED / "data" / "math_cases.jsonl").read_text().splitlines()
    ]
    firm = [row for row in rows if row["kind"] == "firm"]
    wrong = [
        row["id"]
        for row in firm
        if bool(grade_math(row["gold"], row["prediction"])) != row["expected"]
    ]
    assert len(firm) > 60 and wrong == []


@pytest.mark.parametrize(
    "gold, text, expected",
    [
        ("5", r"First \boxed{3}. Wait: \boxed{5}.", 1),
        ("42", "I tried 42 cases but cannot finish.", 0),
        ("5", r"\boxed{5", 0),
        ("5", r"\boxed{}", 0),
        ("5", r"\boxed{5\%}", 0),
        ("3", r"\fbox{3}", 1),
        ("-3", "Answer: -3", 1),
        ("7", "answer:\n7", 0),
        ("1000", r"\boxed{1,000}", 1),
        ("12", r"\boxed{1,2}", 0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1),
        (r"\sqrt{2}", r"\boxed{1.4142}", 0),
        ("1", r"\boxed{1.0}", 1),
        ("10", r"\boxed{\text{ten}}", 0),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
        ("0", r"\boxed{-0}", 1),
        ("3", r"\boxed{x=3}", 1),
        ("256", r"\boxed{12*13+100}", 0),
        ("256", r"\boxed{x=256}", 1),
        ("5", r"\boxed{7=5}", 0),
        ("5", r"\boxed{5 \approx 7}", 0),
        ("5", r"\boxed{5\text{ or 6}}", 0),
        ("5", r"\boxed{5\text{ million}}", 0),
        ("3", r"\boxed{3\mathrm{i}}", 0),
        ("120", r"\boxed{5!}", 0),
        ("42", r"\boxed{I tried 17, maybe 42}", 0),
        ("1000", r"\boxed{1\,000}", 1),
        ("0.0000002", r"\boxed{0.0000004}", 0),
        ("5", "Answer: **5**", 1),
        ("9" * 5000, "\\boxed{" + "9" * 5000 + "}", 1),
        ("5", r"\boxed{5}" + "\ud800", 1),
        ("5", r"\boxed{{{5}", 0),
        ("12", "\\boxed{12}\x00", 1),
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


def test_families_are_balanced_and_closed_book_where_they_should_be():
    questions = tasks.load("arithmetic", "train", 0, 300)
    assert {q.family for q in questions} == {"compute", "recall", "relay"}
    assert {q.family: sum(p.family == q.family for p in questions) for q in questions} == {
        "compute": 150,
        "recall": 75,
        "relay": 75,
    }
    assert all(q.tools == (("python",) if q.family == "compute" else ()) for q in questions)
    for q in questions:  # the gold answers are right
        if q.family == "compute":
            assert eval(q.prompt[len("What is ") : -1]) == int(q.answer)


def test_weights_and_order(tmp_path):
    for name in ("a", "b"):
        rows = [json.dumps({"question": f"{name}{i}?", "answer": i}) for i in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    questions = tasks.load(f"{tmp_path}/a.jsonl:0.75,{tmp_path}/b.jsonl:0.25", "all", 0, 40)
    assert sum(q.prompt.startswith("a") for q in questions) == 30
    assert all(
        2 <= sum(q.prompt.startswith("b") for q in questions[i : i + 16]) <= 6
        for i in range(0, 24, 8)
    )
    shuffled = tasks.shuffled(questions, "seed")
    assert (
        sorted(q.id for q in shuffled) == sorted(q.id for q in questions) and shuffled != questions
    )


@needs_shared
@pytest.mark.parametrize(
    "name, count, first",
    [("gsm8k", 1319, None), ("math500", 500, None), ("aime24", 30, None), ("aime25", 30, None)],
)
def test_local_benchmarks(name, count, first):
    questions = tasks.load(name, "all", 0, 5000, str(SHARED / "data"))
    assert len(questions) == count and all(q.prompt and q.answer for q in questions)
    if name == "gsm8k":
        assert all(canonical_integer(q.answer) for q in questions)
    assert all(grade_math(q.answer, f"\\boxed{{{q.answer}}}") for q in questions[:20])


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
    for question in tasks.load(
        "rg:string_insertion,spiral_matrix,n_queens,countdown,puzzle24,binary_matrix",
        "heldout",
        0,
        6,
    ):
        assert (
            tasks.grade(question, "\\boxed{" + attack.replace("{}", str(tmp_path / "pwned")) + "}")
            < 0.2
        )
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(tasks.UserError, match="runs the answer"):
        tasks.load("rg:polynomial_multiplication", "heldout", 0, 6)


def test_reasoning_gym_scores_its_own():
    for question in tasks.load("rg:gcd,leg_counting", "heldout", 0, 6):
        assert tasks.grade(question, f"\\boxed{{{question.entry['answer']}}}") == 1.0
        assert (
            tasks.grade(question, "no box") == 0.0 and tasks.grade(question, r"\boxed{77777}") < 0.5
        )
