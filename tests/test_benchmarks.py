"""The published sets: every row of every sample loads or is left out for a reason, and none of the
known traps catches us."""

import base64
import gzip
import json
import pickle
import zlib

import pytest
from conftest import SHARED, needs_shared

from benchmarks import datasets as benchmarks
import tasks
from benchmarks.math_grading import canonical_integer, grade_math
from benchmarks.datasets import Shingles, Skip, overlap, private_tests, read

DATA = SHARED / "data"


@needs_shared
@pytest.mark.parametrize(
    "file, split, kept, skipped",
    [
        ("aime24.jsonl", "test", 30, {}),
        ("aime25.jsonl", "test", 30, {}),
        ("math500.jsonl", "test", 500, {}),
        ("gsm8k_test.jsonl", "test", 1319, {}),
        ("gsm8k_train_1000.jsonl", "train", 1000, {}),
        ("olympiadbench_OE_TO_maths_en_COMP.jsonl", "test", 674, {"the answer is a sentence": 1}),
        ("polaris_shape_fixture.jsonl", "train", 5, {}),
        ("dapo_shape_fixture.jsonl", "train", 5, {"a copy of another row": 10}),
        ("humaneval.jsonl", "test", 164, {}),
        ("mbpp.jsonl", "test", 500, {"of another split": 474}),
        ("mbpp.jsonl", "train", 374, {"of another split": 600}),
        ("livecodebench_sample_raw.jsonl", "test", 4, {}),
        ("apps_train_sample_raw.jsonl", "train", 5, {}),
        ("codecontests_sample.jsonl", "test", 14, {"an image belongs to it": 5, "interactive": 1}),
        (
            "codecontests_sample_raw.jsonl",
            "train",
            14,
            {"an image belongs to it": 5, "interactive": 1},
        ),
    ],
)
def test_every_row_loads_or_is_left_out_for_a_reason(file, split, kept, skipped):
    name = next(name for name in benchmarks.SOURCES if file.startswith(name))
    questions, reasons = read(name, split, path=str(DATA / file))
    assert len(questions) == kept and dict(reasons) == skipped
    assert len({question.prompt for question in questions}) == kept and all(
        question.id for question in questions
    )
    for question in questions:
        assert bool(question.tests) == (question.kind == "code") == (not question.answer)
        assert question.tests is None or ("tests" in question.tools) == bool(question.tests.public)


@needs_shared
def test_golds_are_equal_to_themselves():
    for name in ("aime24", "aime25", "gsm8k"):
        for question in tasks.load(name, "all", 0, 60, str(DATA)):
            assert (
                grade_math(question.answer, f"\\boxed{{{question.answer}}}") == 1.0
                and canonical_integer(question.answer) is not None
            )
    for name in ("olympiadbench", "math500"):
        for question in tasks.load(name, "all", 0, 80, str(DATA)):
            assert grade_math(question.answer, f"\\boxed{{{question.answer}}}") == 1.0, question


@needs_shared
def test_the_same_questions_every_time_and_a_limit_is_a_limit():
    one, two = (tasks.load("math500", "all", seed, 20, str(DATA)) for seed in (0, 0))
    assert one == two != tasks.load("math500", "all", 1, 20, str(DATA)) and len(one) == 20
    train, held = (tasks.load("gsm8k", split, 0, 2000, str(DATA)) for split in ("train", "heldout"))
    assert len(train) + len(held) == 1000 and not {q.prompt for q in train} & {
        q.prompt for q in held
    }


@needs_shared
def test_training_runs_twenty_tests_and_an_evaluation_all():
    counts = {
        split: [
            len(q.tests.public + q.tests.hidden)
            for q in tasks.load("codecontests", split, 0, 100, str(DATA))
        ]
        for split in ("train", "heldout", "all")
    }
    assert (
        max(counts["train"]) == 20 < max(counts["heldout"])
        and 20 < max(counts["all"])
        and tasks.load("codecontests", "train", 0, 9, str(DATA))
        == tasks.load("codecontests", "train", 0, 9, str(DATA))
    )


@needs_shared
def test_dapo_is_unwrapped():
    question = next(q for q in read("dapo", "train", str(DATA))[0] if q.answer == "73")
    assert (
        question.prompt.startswith("Among the 900 residents") and "Answer:" not in question.prompt
    )
    row = {"prompt": "1+1 是多少?", "solution": "2"}
    with pytest.raises(Skip, match="Chinese"):
        benchmarks._dapo(row, "dapo")


@needs_shared
def test_hidden_tests_and_golds_are_in_no_prompt():
    for name in ("livecodebench", "codecontests", "apps"):
        for question in read(name, "test", str(DATA))[0]:
            shown = [
                given
                for given, _ in question.tests.hidden
                if isinstance(given, str) and len(given) > 12 and given.strip() in question.prompt
            ]
            assert not shown, question.id


@needs_shared
def test_the_private_tests_of_livecodebench():
    row = json.loads((DATA / "livecodebench_sample_raw.jsonl").read_text().splitlines()[0])
    assert len(private_tests(row["private_test_cases"])) > 3 and private_tests("[]") == []


def packed(value, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "text",
    [
        packed(Evil()),
        packed(Evil(), 0),
        packed(Evil(), 2),
        packed({"a": 1}),
        packed(print),
        "nonsense",
        base64.b64encode(b"x").decode(),
        base64.b64encode(zlib.compress(b"\x80\x04.")).decode(),
        base64.b64encode(zlib.compress(b"cos\nsystem\n(S'id'\ntR.")).decode(),
    ],
)
def test_a_pickle_from_the_net_constructs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Skip, match="can't be read"):
        private_tests(text)
    assert not list(tmp_path.iterdir()) and private_tests(packed('[{"input": "1"}]')) == [
        {"input": "1"}
    ]


@needs_shared
def test_options(tmp_path):
    for option, kept in (
        ("apps@introductory", 2),
        ("apps@interview", 2),
        ("apps@competition", 1),
        ("livecodebench@2023-08-01..2023-08-31", 1),
        ("livecodebench@2025-01-01..2025-04-30", 0),
    ):
        assert len(read(option, "test", str(DATA))[0]) == kept, option
    assert tasks.parse_spec("paper") == [
        ("polaris", 0.5),
        ("apps@introductory", 0.35),
        ("codecontests", 0.15),
    ]
    for wrong in ("apps@hard", "livecodebench@v9", "livecodebench@2025", "aime24@v1", "mbpp@"):
        with pytest.raises(tasks.UserError, match="no option"):
            tasks.load(wrong, "all", 0, 10, str(DATA))
    with pytest.raises(tasks.UserError, match="no question is left"):
        tasks.load("livecodebench@2025-01-01..2025-04-30", "all", 0, 10, str(DATA))


def test_shapes_of_apps(tmp_path):
    """Arguments stay lists, dictionaries get their integer keys back, huge integers are read,
    one-element results are unwrapped."""

    def row(inputs, outputs, **more):
        return {
            "problem_id": 1,
            "question": "Do it.",
            "difficulty": "introductory",
            "starter_code": "",
            "input_output": json.dumps({"inputs": inputs, "outputs": outputs, **more}),
        }

    big = "9" * 5000
    raw = row([], []) | {
        "input_output": '{"fn_name": "f", "inputs": [[' + big + ']], "outputs": [1]}'
    }
    assert benchmarks._apps(raw, "apps").tests.hidden[0][0][0] % 10 == 9
    assert benchmarks._apps(
        row([[{"1": [2]}, [3]]], [[{"4": 5}]], fn_name="f"), "apps"
    ).tests.hidden == (([{1: [2]}, [3]], {4: 5}),)
    assert benchmarks._apps(row([["1", "2"]], [["3"]]), "apps").tests.hidden == (("1\n2", "3"),)
    for empty in ("", json.dumps({"inputs": [], "outputs": []})):
        with pytest.raises(Skip, match="without tests"):
            benchmarks._apps(row([], []) | {"input_output": empty}, "apps")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"input_file": "in.txt"}, "files"),
        ({"description": "This is an interactive problem."}, "interactive"),
        ({"description": "Print and flush."}, "interactive"),
        ({"public_tests": {"input": [], "output": []}}, "without tests"),
        ({"description": "See <image>."}, "image"),
        ({"description": "a\x0cfrac"}, "control"),
    ],
)
def test_what_cannot_be_graded_is_left_out(row, reason):
    tests = {"input": ["1"], "output": ["2"]}
    good = {
        "name": "p",
        "description": "Add one.",
        "public_tests": tests,
        "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": [], "output": []},
        "time_limit": {"seconds": 0, "nanos": 500_000_000},
        "input_file": "",
        "output_file": "",
    }
    assert benchmarks._codecontests(good, "codecontests").tests.seconds == 1.5
    with pytest.raises(Skip, match=reason):
        benchmarks._codecontests(good | row, "codecontests")


def test_files_of_any_kind(tmp_path):
    rows = [{"id": str(i), "problem": f"What is {i} + 1?", "answer": i + 1} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with gzip.open(tmp_path / "a" / "aime25_copy.jsonl.gz", "wt") as file:
        file.write(text)
    assert len(read("aime25", "test", str(tmp_path / "a"))[0]) == 5
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no parquet files")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b" / "aime25.parquet")
    assert sorted(q.answer for q in read("aime25", "test", str(tmp_path / "b"))[0]) == [
        "1",
        "2",
        "3",
        "4",
        "5",
    ]
    (tmp_path / "b" / "aime25.parquet").unlink()
    for content, said in (
        (text + "{", "line 6"),
        ("[1]\n", "object"),
        ('{"id": 1}\n', "not a row of aime25"),
    ):
        (tmp_path / "b" / "aime25.jsonl").write_text(content)
        with pytest.raises(tasks.UserError, match=said):
            read("aime25", "test", str(tmp_path / "b"))
    with pytest.raises(tasks.UserError, match="no file humaneval"):
        read("humaneval", "test", str(tmp_path))


def test_of_several_files_the_one_that_names_version_and_split(tmp_path, caplog):
    """And a line where it has to make do with another."""
    caplog.set_level("INFO", logger="metaagent")
    for name in (
        "mbpp.jsonl",
        "mbpp_sanitized.jsonl",
        "livecodebench_v5.jsonl",
        "livecodebench_v6.jsonl",
        "gsm8k_train.jsonl",
    ):
        (tmp_path / name).write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    picked = [
        benchmarks._local(name, "test", tmp_path).name
        for name in (
            "mbpp",
            "mbpp@sanitized",
            "livecodebench@v6",
            "livecodebench@2025-01-01..2025-04-30",
        )
    ]
    assert (
        picked
        == [
            "mbpp.jsonl",
            "mbpp_sanitized.jsonl",
            "livecodebench_v6.jsonl",
            "livecodebench_v5.jsonl",
        ]
        and not caplog.text
    )
    assert (
        len(read("gsm8k", "test", str(tmp_path))[0]) == 1 and "names the other split" in caplog.text
    )
    assert (
        benchmarks._local("livecodebench@v4", "test", tmp_path).name == "livecodebench_v5.jsonl"
        and "does not name v4" in caplog.text
    )


@needs_shared
def test_overlap_finds_what_is_evaluated_in_what_is_trained_on():
    """The Polaris and DAPO fixtures are AIME24 questions: found behind other spacing, case and a
    changed number; GSM8K's are not."""
    aime = Shingles(question.prompt for question in tasks.load("aime24", "all", 0, 100, str(DATA)))
    for name in ("polaris", "dapo"):
        for question in read(name, "train", str(DATA))[0]:
            assert overlap(question.prompt, aime) and overlap(
                "  " + question.prompt.upper().replace(" ", "\n") + " ", aime
            )
            assert overlap(question.prompt.replace("9", "8", 1), aime)
    assert not any(
        overlap(question.prompt, aime)
        for question in tasks.load("gsm8k,math500", "all", 0, 400, str(DATA))
    )
