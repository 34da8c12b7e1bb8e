"""Loading and grading."""

import json

import pytest

import tasks
from lib.errors import UserError
from lib.files import read_jsonl


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


def test_lines_end_at_a_newline_alone(tmp_path):
    """U+2028 and U+0085 may stand inside a string; a byte order mark and CRLF are read."""
    texts = ["one\u2028two", "one\u0085two", "plain"]
    rows = [json.dumps({"question": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert [row["question"] for row in read_jsonl(path)] == texts


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "fine"}\n{"question": "half \\ud83d"}\n')
    with pytest.raises(UserError, match="rows.jsonl, line 2: half of a surrogate pair"):
        read_jsonl(path)


def test_weights_are_shares_of_the_training_questions(tmp_path):
    """Files in the proportions of the published sets: 50, 35 and 15 %, and each in nearly every
    step of eight questions."""
    sizes, weights = {"math": 5300, "apps": 360, "contests": 1300}, (0.5, 0.35, 0.15)
    names = []
    for (name, size), weight in zip(sizes.items(), weights):
        rows = [json.dumps({"question": f"{name} {i}?", "answer": i}) for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        names.append(f"{tmp_path}/{name}.jsonl:{weight}")
    questions = tasks.load(",".join(names), "train", 0, 50_000)
    drawn = [tasks.questions_of_step(questions, 8, step, 0) for step in range(200)]
    for name, weight in zip(sizes, weights):
        counts = [sum(q.family == name for q in step) for step in drawn]
        assert sum(counts) / 1600 == pytest.approx(weight, abs=0.02)
        assert all(sum(counts[i : i + 2]) > 0 for i in range(199))
    one, two = tasks.questions_of_step(questions[:1], 2, 0, 0)
    assert one.prompt == two.prompt and one.id != two.id  # seeds are of the id: two groups
    heldout = tasks.load(",".join(names), "heldout", 0, 1000)
    assert len({q.prompt for q in heldout}) == len(heldout)
