"""Loading and grading."""

import json

import tasks


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
