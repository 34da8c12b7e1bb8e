r"""The published sets: where they are, what their rows look like, which rows can't be graded.

    questions, skipped = read("livecodebench@v6", "test", data_dir="../data", size=100, seed=0)

A set comes from `--data-dir` (a file whose name begins with the set's name: .jsonl, .jsonl.gz or
.parquet) or from the Hub. A name may carry options: `apps@introductory`,
`livecodebench@release_v5`, `livecodebench@2025-01-01..2025-04-30`, `mbpp@sanitized`. Rows that
nobody can grade are skipped, each for a stated reason, and counted. Every row keeps its own answer
or tests; wrappers around a question are taken off.

Traps of the data, each with a test. DAPO has a hundred copies of each question, in a wrapper that
asks for another answer format. AIME 24 is in collections that are trained on (`overlap`). The
private tests of LiveCodeBench are a pickle from the net: it is read by an unpickler that can
construct nothing. APPS has integers of more than 4,300 digits, and arguments that are lists, not
text. A seed decides which rows of a set are used, not Python's hash.

Test: `pytest tests/test_benchmarks.py`. Read next: ../engines/__init__.py.
"""

import ast
import base64
import builtins
import gzip
import hashlib
import io
import json
import pathlib
import pickle
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Callable

from benchmarks.code_grading import Suite
from data_types import Question
from lib.cli import log
from lib.errors import UserError
from lib.files import parse_row

STDIN = "Write a Python program that reads from standard input and writes to standard output."
SEVERAL_ANSWERS = "If there are several answers, put all of them into one box, separated by commas."
MAX_ANSWER_WORDS = 4  # of OlympiadBench; more are a sentence, which nobody can grade
RUN_WORDS = 8  # two texts are compared by their runs of eight words

# CPU seconds of one test
MBPP_SECONDS = 20.0
APPS_SECONDS = 4.0
CODECONTESTS_SECONDS = 10.0  # of a problem that names no limit
MAX_CODECONTESTS_SECONDS = 20.0

# What a conversion raises on a row of another shape
ROW_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError)
# What an unreadable pickle of an untrusted row raises
PICKLE_ERRORS = (
    ValueError,
    TypeError,
    EOFError,
    AttributeError,
    LookupError,
    zlib.error,
    pickle.UnpicklingError,
)


class Skip(Exception):
    """A row that can't be used, and why."""


@dataclass(frozen=True)
class Source:
    """A published set."""

    repository: str
    convert: Callable[[dict, str], Question]  # (row, name with options); raises Skip
    splits: dict[str, str]  # our splits ("train", "test") -> the Hub's
    configuration: str = "default"
    # Where the Hub has raw files instead of a table: split or version -> file names
    files: dict[str, tuple[str, ...]] | None = None
    columns: tuple[str, ...] = ()  # to read, of a set that is too large to read completely
    options: str = "(?!)"  # a pattern of what may follow an @: by default nothing
    # (row, our split) -> bool, where a file holds all splits
    in_split: Callable[[dict, str], bool] | None = None


def make_question(
    name: str,
    question_id,
    prompt: str,
    answer: str = "",
    kind: str = "math",
    tests: Suite | None = None,
    tools: tuple[str, ...] = ("python",),
) -> Question:
    """A question, if its text and answer are sound. Raises Skip.

    name: of the set, with its options.
    """
    prompt = prompt.replace("\r\n", "\n").strip()
    answer = answer.strip()
    if not prompt:
        raise Skip("without a question")
    if not answer and tests is None:
        raise Skip("without an answer")
    if re.search(r"[\x00-\x08\x0b-\x1f]", prompt + answer):
        raise Skip("control characters: a broken escape")
    return Question(
        id=str(question_id),
        prompt=prompt,
        answer=answer,
        kind=kind,
        family=name.split("@")[0],
        tools=tools,
        tests=tests,
    )


# --------------------------------------------------------------------------------------------- math


def convert_math(row: dict, name: str, id_column: str = "id") -> Question:
    gold = row["answer"]
    if isinstance(gold, list):
        gold = ",".join(str(value) for value in gold)
    return make_question(name, row.get(id_column, ""), row["problem"], str(gold))


def convert_math500(row: dict, name: str) -> Question:
    return convert_math(row, name, id_column="unique_id")


def convert_gsm8k(row: dict, name: str) -> Question:
    gold = row["answer"].split("####")[-1]
    return make_question(name, row.get("id", ""), row["question"], gold)


def convert_aime24(row: dict, name: str) -> Question:
    row = {key.lower(): value for key, value in row.items()}  # one copy of the set capitalises
    return convert_math(row, name)


def convert_olympiadbench(row: dict, name: str) -> Question:
    if row.get("image_1") is not None or "<image" in row["question"]:
        raise Skip("an image belongs to it")
    gold = ",".join(row["final_answer"] or [])
    prose = re.sub(r"\$[^$]*\$|\\[a-z]+", " ", gold)
    if len(re.findall(r"\b[a-z]{2,}\b", prose)) > MAX_ANSWER_WORDS:
        raise Skip("the answer is a sentence")
    prompt = row["question"]
    if row.get("context"):
        prompt = row["context"] + "\n" + prompt
    if row.get("is_multiple_answer"):
        prompt += "\n" + SEVERAL_ANSWERS
    return make_question(name, row["id"], prompt, gold)


def convert_dapo(row: dict, name: str) -> Question:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = prompt[0]["content"]
    before = r"^Solve the following math problem step by step\..*?\n\n"
    after = r"\n\nRemember to put your answer on its own line after \"Answer:\"\.\s*$"
    prompt = re.sub(before, "", prompt, flags=re.DOTALL)
    prompt = re.sub(after, "", prompt)
    if re.search(r"[\u4e00-\u9fff]", prompt):
        raise Skip("in Chinese")
    if row.get("reward_model"):
        gold = row["reward_model"]["ground_truth"]
    else:
        gold = row["solution"]
    more = row.get("extra_info") or {}
    return make_question(name, more.get("index", ""), prompt, str(gold))


# --------------------------------------------------------------------------------------------- code


def code_question(name: str, question_id, prompt: str, tests: Suite) -> Question:
    """A question that is graded by tests. Raises Skip."""
    if not tests.public + tests.hidden:
        raise Skip("without tests")
    if re.search(r"interactive (problem|task)|\bflush\b", prompt, re.IGNORECASE):
        raise Skip("interactive")
    if "<image>" in prompt:
        raise Skip("an image belongs to it")
    tools = ("python", "tests") if tests.public else ("python",)
    return make_question(name, question_id, prompt, kind="code", tests=tests, tools=tools)


def convert_humaneval(row: dict, name: str) -> Question:
    prompt = "Complete this Python function. Give the whole program.\n\n" + row["prompt"]
    tests = Suite(
        kind="assert",
        hidden=(f"{row['test']}\ncheck({row['entry_point']})",),
        function=row["entry_point"],
        setup=row["prompt"] + "\n    pass\n",
    )
    return code_question(name, row["task_id"], prompt, tests)


def convert_mbpp(row: dict, name: str) -> Question:
    cases = tuple(row["test_list"])
    task = row.get("text") or row["prompt"]
    prompt = f"{task}\nYour program should pass these tests:\n" + "\n".join(cases)
    if row.get("test_setup_code"):
        tests = mbpp_calls(cases, row["test_setup_code"])
    else:
        tests = Suite(
            kind="assert",
            public=cases,
            function=tested_function(cases),
            setup="\n".join(row.get("test_imports") or []),
            seconds=MBPP_SECONDS,
        )
    return code_question(name, row["task_id"], prompt, tests)


def mbpp_calls(cases: tuple[str, ...], setup_code: str) -> Suite:
    """Tests `assert CALL == LITERAL` whose setup builds objects of the program's own classes.

    So the calls have to run where the program is.
    """
    calls = []
    for case in cases:
        comparison = ast.parse(case).body[0].test
        expected = ast.literal_eval(comparison.comparators[0])
        calls.append(([ast.unparse(comparison.left)], expected))
    return Suite(
        kind="call",
        public=tuple(calls),
        function="lambda text: eval(text)",
        after=setup_code,
        seconds=MBPP_SECONDS,
    )


def tested_function(cases: tuple[str, ...]) -> str:
    """The function that all of the tests call.

    >>> tested_function(("assert set(common(1)) == {2}", "assert common(3) == sorted([4])"))
    'common'
    """
    names = called_names(cases[0])
    for case in cases[1:]:
        names &= called_names(case)
    own_names = names - set(dir(builtins))
    return min(own_names or names, key=cases[0].find)  # one program redefines `sum`


def called_names(code: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
    return names


class InertUnpickler(pickle.Unpickler):
    """Reads strings, and constructs nothing: data from the net must not run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} in data")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("a reference in data")


def private_tests(text: str) -> list:
    """LiveCodeBench's private_test_cases: JSON, or base64 of zlib of a pickle of JSON text.

    Raises Skip.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass  # not JSON
    try:
        pickled = zlib.decompress(base64.b64decode(text))
        return json.loads(InertUnpickler(io.BytesIO(pickled)).load())
    except PICKLE_ERRORS as error:
        raise Skip(f"private tests that can't be read ({type(error).__name__})") from None


def convert_livecodebench(row: dict, name: str) -> Question:
    window = re.search(r"@(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", name)
    if window and not window[1] <= str(row["contest_date"])[:10] <= window[2]:
        raise Skip("outside of the dates asked for")
    public = json.loads(row["public_test_cases"])
    hidden = private_tests(row["private_test_cases"])
    prompt = row["question_content"]
    metadata = json.loads(row["metadata"] or "{}")
    function = metadata.get("func_name", "")

    if not function:
        tests = Suite(
            kind="stdin",
            public=tuple((case["input"], case["output"]) for case in public),
            hidden=tuple((case["input"], case["output"]) for case in hidden),
            rule="lines",
        )
        return code_question(name, row["question_id"], f"{prompt}\n\n{STDIN}", tests)

    starter = row["starter_code"]
    tests = Suite(
        kind="call",
        public=tuple(livecodebench_call(case) for case in public),
        hidden=tuple(livecodebench_call(case) for case in hidden),
        function=method_or_function(function, starter),
    )
    prompt = f"{prompt}\n\nComplete this program:\n\n{starter}"
    return code_question(name, row["question_id"], prompt, tests)


def livecodebench_call(case: dict) -> tuple[list, object]:
    """(arguments, expected value); the input has an argument a line."""
    lines = [line for line in case["input"].split("\n") if line.strip()]
    return [json.loads(line) for line in lines], json.loads(case["output"])


def method_or_function(name: str, starter: str) -> str:
    """The expression that a call test calls."""
    return f"Solution().{name}" if "class Solution" in starter else name


def convert_apps(row: dict, name: str) -> Question:
    difficulty = re.search(r"@(introductory|interview|competition)", name)
    if difficulty and row["difficulty"] != difficulty[1]:
        raise Skip("of another difficulty")
    if not row["input_output"]:
        raise Skip("without tests")
    input_output = parse_big_json(row["input_output"])
    pairs = list(zip(input_output["inputs"], input_output["outputs"]))
    question_id = row.get("problem_id", row.get("id"))
    prompt = row["question"]
    function = input_output.get("fn_name")

    if not function:
        pairs = [(join_lines(given), join_lines(value)) for given, value in pairs]
        tests = public_if_shown(prompt, pairs, APPS_SECONDS)
        return code_question(name, question_id, f"{prompt}\n\n{STDIN}", tests)

    starter = row.get("starter_code") or ""
    cases = [(integer_keys(given), unwrap(integer_keys(value))) for given, value in pairs]
    tests = Suite(
        kind="call",
        hidden=tuple(cases),
        function=method_or_function(function, starter),
    )
    prompt = f"{prompt}\n\nComplete this program:\n\n{starter or 'def ' + function}"
    return code_question(name, question_id, prompt, tests)


def parse_big_json(text: str):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # some tests hold integers of more digits than Python reads
    try:
        return json.loads(text)
    finally:
        sys.set_int_max_str_digits(limit)


def join_lines(value) -> str:
    if isinstance(value, list):
        return "\n".join(str(line) for line in value)
    return str(value)


def integer_keys(value):
    """`value` with the integer keys of its dictionaries, which JSON had made text.

    >>> integer_keys([{"1": [2]}, {"a": 3}])
    [{1: [2]}, {'a': 3}]
    """
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    if isinstance(value, list):
        return [integer_keys(item) for item in value]
    return value


def unwrap(value):
    """APPS puts a result into a list."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value


def public_if_shown(statement: str, pairs: list[tuple[str, str]], seconds: float) -> Suite:
    """Tests (input, expected output): those whose input the statement shows are public."""
    public, hidden = [], []
    for given, expected in pairs:
        is_shown = given.strip() != "" and given.strip() in statement
        cases = public if is_shown else hidden
        cases.append((given, expected))
    return Suite(kind="stdin", public=tuple(public), hidden=tuple(hidden), seconds=seconds)


def convert_codecontests(row: dict, name: str) -> Question:
    if row.get("input_file") or row.get("output_file"):
        raise Skip("reads or writes files")
    statement = row["description"]
    if "inputs" in row:
        pairs = list(zip(row["inputs"], row["outputs"]))
        tests = public_if_shown(statement, pairs, CODECONTESTS_SECONDS)
    else:
        tests = codecontests_tests(row)
    return code_question(name, row["name"], f"{statement}\n\n{STDIN}", tests)


def codecontests_tests(row: dict) -> Suite:
    """The tests of a row of the original set. Raises Skip."""
    cases = {}
    for column in ("public_tests", "private_tests", "generated_tests"):
        cases[column] = tuple(zip(row[column]["input"], row[column]["output"]))
    public = cases["public_tests"]
    if any("!" in output and "?" in output for _, output in public):
        raise Skip("interactive")  # queries and answers in the outputs
    limit = row.get("time_limit") or {}
    seconds = (limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9
    seconds = min(3 * seconds, MAX_CODECONTESTS_SECONDS)  # times 3, because it is Python
    return Suite(
        kind="stdin",
        public=public,
        hidden=cases["private_tests"] + cases["generated_tests"],
        seconds=seconds or CODECONTESTS_SECONDS,
    )


# ---------------------------------------------------------------------------------------- the table


def in_mbpp_split(row: dict, split: str) -> bool:
    """The splits of MBPP's authors, by the number of the task."""
    if split == "test":
        return 10 < row["task_id"] <= 510
    return row["task_id"] > 600


OTHER_SPLIT = {"train": "test", "test": "train"}
LIVECODEBENCH_FILES = (
    *("test.jsonl", "test2.jsonl", "test3.jsonl"),
    *("test4.jsonl", "test5.jsonl", "test6.jsonl"),
)
# Version -> files: vN is what version N added, release_vN is everything up to it
LIVECODEBENCH_VERSIONS = {f"v{n}": LIVECODEBENCH_FILES[n - 1 : n] for n in range(1, 7)}
LIVECODEBENCH_VERSIONS |= {f"release_v{n}": LIVECODEBENCH_FILES[:n] for n in range(1, 7)}

SOURCES = {
    "gsm8k": Source(
        repository="openai/gsm8k",
        convert=convert_gsm8k,
        splits={"train": "train", "test": "test"},
        configuration="main",
    ),
    "math500": Source("HuggingFaceH4/MATH-500", convert_math500, {"test": "test"}),
    "aime24": Source("HuggingFaceH4/aime_2024", convert_aime24, {"test": "train"}),
    "aime25": Source("math-ai/aime25", convert_math, {"test": "test"}),
    "olympiadbench": Source(
        repository="Hothan/OlympiadBench",
        convert=convert_olympiadbench,
        splits={"test": "train"},
        configuration="OE_TO_maths_en_COMP",
    ),
    "polaris": Source("POLARIS-Project/Polaris-Dataset-53K", convert_math, {"train": "train"}),
    "dapo": Source(
        repository="open-r1/DAPO-Math-17k-Processed",
        convert=convert_dapo,
        splits={"train": "train"},
        configuration="en",
    ),
    "humaneval": Source(
        repository="openai/openai_humaneval",
        convert=convert_humaneval,
        splits={"test": "test"},
        configuration="openai_humaneval",
    ),
    "mbpp": Source(
        repository="google-research-datasets/mbpp",
        convert=convert_mbpp,
        splits={"train": "train", "test": "test"},
        configuration="full",
        options="sanitized",
        in_split=in_mbpp_split,
    ),
    "livecodebench": Source(
        repository="livecodebench/code_generation_lite",
        convert=convert_livecodebench,
        splits={"test": "test"},
        files=LIVECODEBENCH_VERSIONS,
        options=r"(release_)?v[1-6]|\d{4}-\d\d-\d\d\.\.\d{4}-\d\d-\d\d",
    ),
    "apps": Source(
        repository="codeparrot/apps",
        convert=convert_apps,
        splits={"train": "train", "test": "test"},
        files={"train": ("train.jsonl",), "test": ("test.jsonl",)},
        options="introductory|interview|competition",
    ),
    "codecontests": Source(
        repository="deepmind/code_contests",
        convert=convert_codecontests,
        splits={"train": "train", "test": "test"},
        columns=(
            *("name", "description", "public_tests", "private_tests", "generated_tests"),
            *("time_limit", "input_file", "output_file"),
        ),
    ),
}


def read(
    name: str,
    split: str,
    data_dir: str | None = None,
    size: int = 1 << 30,
    seed: int = 0,
    path: str | None = None,
) -> tuple[list[Question], Counter]:
    """The questions of a set, each once, and why rows were skipped, counted.

    Args:
        name: the set and its options, as in `apps@interview`.
        split: "train" or "test"; a set that has only one of them gives that one.
        data_dir: the folder with the set's file; None reads from the Hub.
        size: max questions, drawn by `seed`.
        path: the file to read, instead of one in data_dir or the Hub.

    Raises:
        UserError: no such option, no file, a row that is none of this set.
    """
    base, *options = name.split("@")
    source = SOURCES[base]
    for option in options:
        if not re.fullmatch(source.options, option):
            raise UserError(f"--tasks {name}: no option {option!r} of this set")
    if split not in source.splits:
        split = next(iter(source.splits))
    file = None
    if path:
        file = pathlib.Path(path)
    elif data_dir:
        file = find_file(name, split, data_dir)
    rows = rows_of(file) if file else rows_of_hub(name, source, split, seed)

    skipped = Counter()
    questions = {}  # by their prompts
    for number, row in enumerate(rows, 1):
        try:
            if source.in_split and not source.in_split(row, split):
                raise Skip("of another split")
            question = source.convert(row, name)
        except Skip as reason:
            skipped[str(reason)] += 1
            continue
        except ROW_ERRORS as error:
            problem = f"{type(error).__name__}: {error}"
            where = f"{file or source.repository}, row {number}"
            raise UserError(f"{where}: not a row of {name} ({problem})") from None
        if question.prompt in questions:
            skipped["a copy of another row"] += 1
        else:
            questions[question.prompt] = with_id(question)
        if source.columns and not file and len(questions) >= size:
            break  # a stream, already in random order
    num_drawn = min(size, len(questions))
    drawn = random.Random(f"{name} {seed}").sample(list(questions.values()), num_drawn)
    return drawn, skipped


def with_id(question: Question) -> Question:
    """`question`; a hash of its prompt is its id if the set gives none."""
    if question.id:
        return question
    digest = hashlib.sha256(question.prompt.encode()).hexdigest()
    return replace(question, id=digest[:12])


def find_file(name: str, split: str, data_dir: str) -> pathlib.Path:
    """The file of a set in a folder; its name begins with the set's. Raises UserError.

    Of several, the one that names the version, then the split, then the one with the shortest name.
    """
    base, *options = name.split("@")
    files = []
    for path in pathlib.Path(data_dir).glob(f"{base}*"):
        if re.search(r"\.(jsonl|jsonl\.gz|parquet)$", path.name):
            files.append(path)
    if not files:
        raise UserError(
            f"--tasks {name}: no file {base}*.jsonl or {base}*.parquet in --data-dir {data_dir}"
        )
    versions = []
    for option in options:
        if option in LIVECODEBENCH_VERSIONS or option == "sanitized":
            versions.append(option)

    def names_versions(path: pathlib.Path) -> bool:
        return all(version in path.name for version in versions)

    def preference(path: pathlib.Path) -> tuple:
        """The lowest is best."""
        return (
            not names_versions(path),
            OTHER_SPLIT[split] in path.name,
            split not in path.name,
            len(path.name),
            path.name,
        )

    file = min(files, key=preference)
    second_best = "and is taken for want of a better one"
    if not names_versions(file):
        log.info(f"{name}: {file} does not name {', '.join(versions)}, {second_best}")
    if OTHER_SPLIT[split] in file.name:
        log.info(f"{name}: {file} names the other split, {OTHER_SPLIT[split]}, {second_best}")
    return file


def rows_of(path: pathlib.Path) -> Iterator[dict]:
    """The rows of a .jsonl, .jsonl.gz or .parquet file, one at a time.

    Raises UserError with the line that is wrong.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(16):
                yield from batch.to_pylist()
            return
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse_row(path, number, line)
    except ImportError:
        raise UserError(f"{path}: pip install pyarrow to read parquet files") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not a UTF-8 text file'}") from None


def rows_of_hub(name: str, source: Source, split: str, seed: int) -> Iterator[dict]:
    """The rows of a set on the Hub: of raw files, of a stream, or of a table. Raises UserError."""
    base, *options = name.split("@")
    hint = f"give --data-dir with {base}.jsonl"
    try:
        if source.files:
            from huggingface_hub import hf_hub_download

            for file in source.files[files_key(source, options, split)]:
                local = hf_hub_download(source.repository, file, repo_type="dataset")
                yield from rows_of(pathlib.Path(local))
            return
        from datasets import load_dataset

        configuration = "sanitized" if "sanitized" in options else source.configuration
        place = source.repository, configuration
        hub_split = source.splits[split]
        if source.columns:
            columns = list(source.columns)
            stream = load_dataset(*place, split=hub_split, streaming=True, columns=columns)
            yield from stream.shuffle(seed=seed, buffer_size=200)
        else:
            yield from load_dataset(*place, split=hub_split)
    except ImportError:
        raise UserError(
            f"--tasks {name}: pip install datasets to read it from the Hub, or {hint}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(
            f"--tasks {name}: {source.repository} can't be read ({problem}); {hint}"
        ) from None


def files_key(source: Source, options: list[str], split: str) -> str:
    """Which of the source's files are read: the version asked for, the newest, or a split."""
    for option in options:
        if option in source.files:
            return option
    return "v6" if source.files is LIVECODEBENCH_VERSIONS else split


# ------------------------------------------------------------------------------------------ overlap


class Shingles:
    """The words of many texts, and their runs of eight words."""

    def __init__(self, texts):
        self.texts = set()
        self.runs = set()
        for text in texts:
            words = words_of(text)
            self.texts.add(words)
            self.runs |= runs_of(words)


def overlap(question: str, others: Shingles) -> bool:
    """Whether a text is a near-duplicate of one in another set.

    It has the same words, or at least half of its runs of eight words in common with the set.

    >>> overlap("What is  the SUM of 2, and 3?", Shingles(["What is the sum of 2 and 3?"]))
    True
    """
    words = words_of(question)
    if words in others.texts:
        return True
    runs = runs_of(words)
    if not runs:
        return False
    return len(runs & others.runs) >= len(runs) / 2


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def runs_of(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    num_runs = max(0, len(words) - RUN_WORDS + 1)
    return {words[start : start + RUN_WORDS] for start in range(num_runs)}
