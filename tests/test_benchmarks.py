"""The published sets: every row loads or is left out for a reason, and no known trap of the data
catches us."""

import base64
import gzip
import json
import os
import pickle
import zlib

import pytest
from conftest import SHARED, needs_shared

import tasks
from benchmarks import datasets
from benchmarks.datasets import Shingles, Skip, overlap, private_tests, read
from lib.errors import UserError

DATA = SHARED / "data"


@needs_shared
@pytest.mark.parametrize(
    "file, split, count, skipped",
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
def test_every_row_loads_or_is_left_out_for_a_reason(file, split, count, skipped):
    name = next(name for name in datasets.SOURCES if file.startswith(name))
    questions, reasons = read(name, split, path=str(DATA / file))
    assert dict(reasons) == skipped
    assert len(questions) == count
    assert len({question.prompt for question in questions}) == count
    for question in questions:
        assert question.id
        is_code = question.kind == "code"
        assert bool(question.tests) == is_code
        assert bool(question.answer) == (not is_code)
        if is_code:
            assert ("tests" in question.tools) == bool(question.tests.public)


@needs_shared
def test_a_seed_draws_the_same_questions_every_time():
    questions = tasks.load("math500", "all", 0, 20, str(DATA))
    assert len(questions) == 20
    assert questions == tasks.load("math500", "all", 0, 20, str(DATA))
    assert questions != tasks.load("math500", "all", 1, 20, str(DATA))


@needs_shared
def test_training_and_heldout_questions_are_disjoint():
    train = tasks.load("gsm8k", "train", 0, 2000, str(DATA))
    heldout = tasks.load("gsm8k", "heldout", 0, 2000, str(DATA))
    assert len(train) + len(heldout) == 1000
    assert not {q.prompt for q in train} & {q.prompt for q in heldout}


@needs_shared
def test_training_runs_twenty_tests_and_an_evaluation_all():
    def most_tests(split):
        questions = tasks.load("codecontests", split, 0, 100, str(DATA))
        return max(len(q.tests.public + q.tests.hidden) for q in questions)

    assert most_tests("train") == 20
    assert most_tests("heldout") > 20
    assert most_tests("all") > 20


@needs_shared
def test_the_tests_of_training_are_the_same_every_time():
    questions = tasks.load("codecontests", "train", 0, 9, str(DATA))
    assert questions == tasks.load("codecontests", "train", 0, 9, str(DATA))


@needs_shared
def test_dapo_is_unwrapped():
    questions, _ = read("dapo", "train", str(DATA))
    question = next(question for question in questions if question.answer == "73")
    assert question.prompt.startswith("Among the 900 residents")
    assert "Answer:" not in question.prompt


def test_dapo_in_chinese_is_left_out():
    with pytest.raises(Skip, match="Chinese"):
        datasets.convert_dapo({"prompt": "1+1 是多少?", "solution": "2"}, "dapo")


@needs_shared
@pytest.mark.parametrize("name", ["livecodebench", "codecontests", "apps"])
def test_hidden_tests_are_in_no_prompt(name):
    questions, _ = read(name, "test", str(DATA))
    for question in questions:
        for given, _ in question.tests.hidden:
            if isinstance(given, str) and len(given) > 12:
                assert given.strip() not in question.prompt, question.id


# ------------------------------------------------------------- LiveCodeBench's pickle from the net


@needs_shared
def test_the_private_tests_of_livecodebench():
    row = json.loads((DATA / "livecodebench_sample_raw.jsonl").read_text().splitlines()[0])
    assert len(private_tests(row["private_test_cases"])) > 3


def test_private_tests_may_be_plain_json():
    assert private_tests("[]") == []


def pack(value, protocol=4) -> str:
    return compress(pickle.dumps(value, protocol))


def compress(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


def test_a_pickled_text_is_read():
    assert private_tests(pack('[{"input": "1"}]')) == [{"input": "1"}]


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "text",
    [
        pack(Evil()),
        pack(Evil(), protocol=0),
        pack(Evil(), protocol=2),
        pack({"a": 1}),
        pack(print),
        "nonsense",
        base64.b64encode(b"x").decode(),
        compress(b"\x80\x04."),
        compress(b"cos\nsystem\n(S'id'\ntR."),
    ],
)
def test_a_pickle_from_the_net_constructs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Skip, match="can't be read"):
        private_tests(text)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------- options, shapes


@needs_shared
@pytest.mark.parametrize(
    "name, count",
    [
        ("apps@introductory", 2),
        ("apps@interview", 2),
        ("apps@competition", 1),
        ("livecodebench@2023-08-01..2023-08-31", 1),
        ("livecodebench@2025-01-01..2025-04-30", 0),
    ],
)
def test_options_select_rows(name, count):
    questions, _ = read(name, "test", str(DATA))
    assert len(questions) == count


@pytest.mark.parametrize(
    "name", ["apps@hard", "livecodebench@v9", "livecodebench@2025", "aime24@v1", "mbpp@"]
)
def test_an_option_that_a_set_lacks_is_an_error(name):
    with pytest.raises(UserError, match="no option"):
        tasks.load(name, "all", 0, 10, str(DATA))


@needs_shared
def test_an_option_that_leaves_no_question_is_an_error():
    with pytest.raises(UserError, match="no question is left"):
        tasks.load("livecodebench@2025-01-01..2025-04-30", "all", 0, 10, str(DATA))


def test_the_mixture_of_the_paper():
    included, excluded = tasks.parse_spec("paper")
    assert included == [("polaris", 0.5), ("apps@introductory", 0.35), ("codecontests", 0.15)]
    assert excluded == []
    assert tasks.parse_spec("gsm8k, paper")[0] == [("gsm8k", None), *included]


@pytest.mark.parametrize(
    "options, split, key",
    [
        ([], "test", "v6"),
        (["v2"], "test", "v2"),
        (["2025-01-01..2025-04-30", "release_v5"], "test", "release_v5"),
    ],
)
def test_the_newest_version_unless_another_is_named(options, split, key):
    assert datasets.files_key(datasets.SOURCES["livecodebench"], options, split) == key


def test_the_files_of_a_split_and_of_a_version():
    assert datasets.files_key(datasets.SOURCES["apps"], ["interview"], "train") == "train"
    assert datasets.LIVECODEBENCH_VERSIONS["v1"] == ("test.jsonl",)
    assert datasets.LIVECODEBENCH_VERSIONS["release_v2"] == ("test.jsonl", "test2.jsonl")


def apps_row(inputs, outputs, **more) -> dict:
    return {
        "problem_id": 1,
        "question": "Do it.",
        "difficulty": "introductory",
        "starter_code": "",
        "input_output": json.dumps({"inputs": inputs, "outputs": outputs, **more}),
    }


def test_apps_reads_huge_integers():
    row = apps_row([], [])
    digits = "9" * 5000
    row["input_output"] = '{"fn_name": "f", "inputs": [[' + digits + ']], "outputs": [1]}'
    [(arguments, _)] = datasets.convert_apps(row, "apps").tests.hidden
    assert arguments[0] % 10 == 9


def test_apps_keeps_arguments_as_lists_with_integer_keys():
    """And a result of one element is taken out of its list."""
    row = apps_row([[{"1": [2]}, [3]]], [[{"4": 5}]], fn_name="f")
    assert datasets.convert_apps(row, "apps").tests.hidden == (([{1: [2]}, [3]], {4: 5}),)


def test_apps_joins_lists_of_lines():
    row = apps_row([["1", "2"]], [["3"]])
    assert datasets.convert_apps(row, "apps").tests.hidden == (("1\n2", "3"),)


@pytest.mark.parametrize("input_output", ["", json.dumps({"inputs": [], "outputs": []})])
def test_apps_without_tests_is_left_out(input_output):
    row = apps_row([], []) | {"input_output": input_output}
    with pytest.raises(Skip, match="without tests"):
        datasets.convert_apps(row, "apps")


CODECONTESTS_ROW = {
    "name": "p",
    "description": "Add one.",
    "public_tests": {"input": ["1"], "output": ["2"]},
    "private_tests": {"input": [], "output": []},
    "generated_tests": {"input": [], "output": []},
    "time_limit": {"seconds": 0, "nanos": 500_000_000},
    "input_file": "",
    "output_file": "",
}


def test_a_python_program_has_three_times_the_limit_of_codecontests():
    assert datasets.convert_codecontests(CODECONTESTS_ROW, "codecontests").tests.seconds == 1.5


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"input_file": "in.txt"}, "files"),
        ({"description": "This is an interactive problem."}, "interactive"),
        ({"description": "Print and flush."}, "interactive"),
        ({"public_tests": {"input": [], "output": []}}, "without tests"),
        ({"description": "See <image>."}, "image"),
        ({"description": "a\x0cfrac"}, "control"),
    ],
)
def test_what_cannot_be_graded_is_left_out(changes, reason):
    with pytest.raises(Skip, match=reason):
        datasets.convert_codecontests(CODECONTESTS_ROW | changes, "codecontests")


# ------------------------------------------------------------------------------------------- files

AIME_ROWS = [{"id": str(i), "problem": f"What is {i} + 1?", "answer": i + 1} for i in range(5)]
AIME_TEXT = "".join(json.dumps(row) + "\n" for row in AIME_ROWS)


def answers(name: str, folder) -> list[str]:
    questions, _ = read(name, "test", str(folder))
    return sorted(question.answer for question in questions)


def test_a_gzipped_file(tmp_path):
    with gzip.open(tmp_path / "aime25_copy.jsonl.gz", "wt") as file:
        file.write(AIME_TEXT)
    assert answers("aime25", tmp_path) == ["1", "2", "3", "4", "5"]


def test_a_parquet_file(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: no parquet files")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(AIME_ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "aime25.parquet")
    assert answers("aime25", tmp_path) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    "content, message",
    [
        (AIME_TEXT + "{", "line 6"),
        ("[1]\n", "object"),
        ('{"id": 1}\n', "not a row of aime25"),
    ],
)
def test_a_file_that_is_wrong_is_an_error(content, message, tmp_path):
    (tmp_path / "aime25.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read("aime25", "test", str(tmp_path))


@pytest.mark.parametrize(
    "name, content", [("aime25.jsonl", b"\xff"), ("aime25.jsonl.gz", b"not gzipped")]
)
def test_a_file_that_is_no_text_is_an_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        read("aime25", "test", str(tmp_path))


def test_a_folder_without_the_set_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no file humaneval"):
        read("humaneval", "test", str(tmp_path))


@pytest.fixture
def folder(tmp_path, caplog):
    """A folder with files of several sets and versions."""
    caplog.set_level("INFO", logger="metaagent")
    names = (
        *("mbpp.jsonl", "mbpp_sanitized.jsonl", "livecodebench_v5.jsonl"),
        *("livecodebench_v6.jsonl", "gsm8k_train.jsonl"),
    )
    for name in names:
        row = {"question": "1 + 1?", "answer": "#### 2"}
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "name, file",
    [
        ("mbpp", "mbpp.jsonl"),
        ("mbpp@sanitized", "mbpp_sanitized.jsonl"),
        ("livecodebench@v6", "livecodebench_v6.jsonl"),
        ("livecodebench@2025-01-01..2025-04-30", "livecodebench_v5.jsonl"),
    ],
)
def test_of_several_files_the_one_that_names_the_version(name, file, folder, caplog):
    assert datasets.find_file(name, "test", folder).name == file
    assert not caplog.text


def test_a_file_of_the_other_split_is_taken_with_a_line(folder, caplog):
    assert answers("gsm8k", folder) == ["2"]
    assert "names the other split" in caplog.text


def test_a_file_of_another_version_is_taken_with_a_line(folder, caplog):
    file = datasets.find_file("livecodebench@v4", "test", folder)
    assert file.name == "livecodebench_v5.jsonl"
    assert "does not name v4" in caplog.text


# ----------------------------------------------------------------------------------------- overlap


@pytest.fixture(scope="module")
def aime24():
    questions = tasks.load("aime24", "all", 0, 100, str(DATA))
    return Shingles(question.prompt for question in questions)


@needs_shared
@pytest.mark.parametrize("name", ["polaris", "dapo"])
def test_overlap_finds_what_is_evaluated_in_what_is_trained_on(name, aime24):
    """The Polaris and DAPO fixtures are AIME 24 questions, found behind small changes."""
    questions, _ = read(name, "train", str(DATA))
    for question in questions:
        assert overlap(question.prompt, aime24)
        spaced = "  " + question.prompt.upper().replace(" ", "\n") + " "
        assert overlap(spaced, aime24)
        assert overlap(question.prompt.replace("9", "8", 1), aime24)


@needs_shared
def test_overlap_does_not_find_other_questions(aime24):
    for question in tasks.load("gsm8k,math500", "all", 0, 400, str(DATA)):
        assert not overlap(question.prompt, aime24), question
