r"""The published sets: where they are, what their rows look like, which rows can't be graded.

    questions, skipped = read("livecodebench@v6", "test", data_dir="../data", size=100, seed=0)

A set comes from `--data-dir` (a file whose name begins with the set's: jsonl, json lines gzipped,
or parquet) or from the Hub. A name may carry options: `apps@introductory`,
`livecodebench@release_v5`, `livecodebench@2025-01-01..2025-04-30`, `mbpp@sanitized`. Rows that
nobody can grade are skipped, each for a stated reason, and counted. Every row keeps its own answer
or tests; wrappers around a question are taken off.

Traps avoided (each has a test): DAPO's rows are a hundred copies of each question, in a wrapper
that asks for another answer format; AIME 24 is part of collections that are trained on (`overlap`);
LiveCodeBench's private tests are a pickle from the net, read by an unpickler that can construct
nothing; APPS keeps integers of more than 4,300 digits, and arguments as lists, not as text; test
sets are capped by a seed, not by Python's hash. Test: `pytest tests/test_benchmarks.py`. Read next:
programs.py.
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
from dataclasses import dataclass, replace
from typing import Callable

from lib.cli import log
from benchmarks.code_grading import Suite
from data_types import Question, UserError
from lib.files import parse_row

STDIN = "Write a Python program that reads from standard input and writes to standard output."


class Skip(Exception):
    """A row that can't be used, and why."""


@dataclass(frozen=True)
class Source:
    """A published set."""

    repository: str
    convert: Callable[[dict, str], Question]
    splits: dict  # our splits ("train", "test") -> the Hub's
    configuration: str = "default"
    # Where the Hub has raw files instead of a table: split or version -> file names.
    files: dict | None = None
    columns: tuple = ()  # to read, of a set that is too large to read completely
    options: str = "(?!)"  # a pattern of what may follow an @: by default nothing
    in_split: Callable | None = None  # (row, split) -> bool, where a file holds all splits


# --------------------------------------------------------------------------------------------- math


def _math(row, name, prompt="problem", answer="answer", id="id"):
    gold = row[answer]
    if isinstance(gold, list):
        gold = ",".join(str(value) for value in gold)
    return _question(name, row.get(id, ""), row[prompt], str(gold))


def _gsm8k(row, name):
    return _question(
        name, row.get("id", ""), row["question"], row["answer"].split("####")[-1].strip()
    )


def _aime24(row, name):
    row = {key.lower(): value for key, value in row.items()}  # one copy capitalises
    return _math(row, name)


def _olympiad(row, name):
    if row.get("image_1") is not None or "<image" in row["question"]:
        raise Skip("an image belongs to it")
    gold = ",".join(row["final_answer"] or [])
    if len(re.findall(r"\b[a-z]{2,}\b", re.sub(r"\$[^$]*\$|\\[a-z]+", " ", gold))) > 4:
        raise Skip("the answer is a sentence")
    prompt = "\n".join(filter(None, (row.get("context"), row["question"])))
    if row.get("is_multiple_answer"):
        prompt += (
            "\nIf there are several answers, put all of them into one box, separated by commas."
        )
    return _question(name, row["id"], prompt, gold)


def _polaris(row, name):
    return _math(row, name)


def _dapo(row, name):
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]
    prompt = re.sub(
        r"^Solve the following math problem step by step\..*?\n\n", "", prompt, flags=re.DOTALL
    )
    prompt = re.sub(
        r"\n\nRemember to put your answer on its own line after \"Answer:\"\.\s*$", "", prompt
    )
    if re.search(r"[\u4e00-\u9fff]", prompt):
        raise Skip("in Chinese")
    if row.get("reward_model"):
        gold = row["reward_model"]["ground_truth"]
    else:
        gold = row["solution"]
    return _question(name, (row.get("extra_info") or {}).get("index", ""), prompt, str(gold))


def _question(name, id, prompt, answer, **more):
    """A question, if its text and answer are sound."""
    prompt, answer = prompt.replace("\r\n", "\n").strip(), answer.strip()
    if not prompt or not (answer or more):
        raise Skip("without a question" if not prompt else "without an answer")
    if re.search(r"[\x00-\x08\x0b-\x1f]", prompt + answer):
        raise Skip("control characters: a broken escape")
    return Question(str(id), prompt, answer, more.pop("kind", "math"), name.split("@")[0], **more)


# --------------------------------------------------------------------------------------------- code


def _code(name, id, prompt, tests):
    if not tests.public + tests.hidden:
        raise Skip("without tests")
    if re.search(r"interactive (problem|task)|\bflush\b", prompt, re.IGNORECASE):
        raise Skip("interactive")
    if "<image>" in prompt:
        raise Skip("an image belongs to it")
    tools = ("python", "tests") if tests.public else ("python",)
    return _question(name, id, prompt, "", kind="code", tests=tests, tools=tools)


def _humaneval(row, name):
    tests = Suite(
        "assert",
        (),
        (f"{row['test']}\ncheck({row['entry_point']})",),
        row["entry_point"],
        setup=row["prompt"] + "\n    pass\n",
    )
    return _code(
        name,
        row["task_id"],
        "Complete this Python function. Give the whole program.\n\n" + row["prompt"],
        tests,
    )


def _mbpp(row, name):
    cases = tuple(row["test_list"])
    setup = "\n".join(row.get("test_imports") or [])
    task = row.get("text") or row["prompt"]
    shown = f"{task}\nYour program should pass these tests:\n" + "\n".join(cases)
    if row.get("test_setup_code"):
        # It builds objects of the program's own classes: the calls have to run where the
        # program is.
        calls = []
        for case in cases:
            comparison = ast.parse(case).body[0].test
            expected = ast.literal_eval(comparison.comparators[0])
            calls.append(([ast.unparse(comparison.left)], expected))
        tests = Suite(
            kind="call",
            public=tuple(calls),
            function="lambda text: eval(text)",
            after=row["test_setup_code"],
            seconds=20.0,
        )
        return _code(name, row["task_id"], shown, tests)
    names = set.intersection(*(_called_names(case) for case in cases))
    own_names = names - set(dir(builtins)) or names  # one program redefines `sum`
    function = min(own_names, key=cases[0].find)
    tests = Suite("assert", cases, function=function, setup=setup, seconds=20.0)
    return _code(name, row["task_id"], shown, tests)


def _called_names(code: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
    return names


class _Inert(pickle.Unpickler):
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
        pass
    try:
        content = _Inert(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        return json.loads(content)
    except (
        ValueError,
        TypeError,
        EOFError,
        AttributeError,
        LookupError,
        zlib.error,
        pickle.UnpicklingError,
    ) as error:
        raise Skip(f"private tests that can't be read ({type(error).__name__})") from None


def _livecodebench(row, name):
    window = re.search(r"@(\d{4}-\d\d-\d\d)\.\.(\d{4}-\d\d-\d\d)", name)
    if window and not window[1] <= str(row["contest_date"])[:10] <= window[2]:
        raise Skip("outside of the dates asked for")
    public, private = json.loads(row["public_test_cases"]), private_tests(row["private_test_cases"])
    prompt, function = (
        row["question_content"],
        json.loads(row["metadata"] or "{}").get("func_name", ""),
    )
    if function:
        values = [
            [
                tuple(
                    (
                        [json.loads(line) for line in case["input"].split("\n") if line.strip()],
                        json.loads(case["output"]),
                    )
                )
                for case in part
            ]
            for part in (public, private)
        ]
        starter = row["starter_code"]
        tests = Suite(
            "call",
            *map(tuple, values),
            f"Solution().{function}" if "class Solution" in starter else function,
        )
        return _code(
            name, row["question_id"], f"{prompt}\n\nComplete this program:\n\n{starter}", tests
        )
    tests = Suite(
        "stdin",
        *(tuple((case["input"], case["output"]) for case in part) for part in (public, private)),
        rule="lines",
    )
    return _code(name, row["question_id"], f"{prompt}\n\n{STDIN}", tests)


def _apps(row, name):
    wanted = re.search(r"@(introductory|interview|competition)", name)
    if wanted and row["difficulty"] != wanted[1]:
        raise Skip("of another difficulty")
    if not row["input_output"]:
        raise Skip("without tests")
    tests = _big_json(row["input_output"])
    pairs = list(zip(tests["inputs"], tests["outputs"]))
    id, prompt, starter = (
        row.get("problem_id", row.get("id")),
        row["question"],
        row.get("starter_code") or "",
    )
    if tests.get("fn_name"):
        function = ("Solution()." if "class Solution" in starter else "") + tests["fn_name"]
        cases = tuple((_int_keys(given), _unwrapped(_int_keys(value))) for given, value in pairs)
        return _code(
            name,
            id,
            f"{prompt}\n\nComplete this program:\n\n{starter or 'def ' + tests['fn_name']}",
            Suite("call", (), cases, function),
        )
    return _code(
        name,
        id,
        f"{prompt}\n\n{STDIN}",
        _by_statement(prompt, [(_text(given), _text(value)) for given, value in pairs], 4.0),
    )


def _big_json(text):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # some tests hold longer integers
    try:
        return json.loads(text)
    finally:
        sys.set_int_max_str_digits(limit)


def _text(value):
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _int_keys(value):
    # JSON has made text of the integer keys of dictionaries
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d+", key) for key in value):
        return {int(key): item for key, item in value.items()}
    return [_int_keys(item) for item in value] if isinstance(value, list) else value


def _unwrapped(value):
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _by_statement(prompt, pairs, seconds):
    """Cases whose input the statement shows are public."""
    shown = [given.strip() != "" and given.strip() in prompt for given, _ in pairs]
    return Suite(
        "stdin",
        *(
            tuple(pair for pair, is_shown in zip(pairs, shown) if is_shown is part)
            for part in (True, False)
        ),
        seconds=seconds,
    )


def _codecontests(row, name):
    if row.get("input_file") or row.get("output_file"):
        raise Skip("reads or writes files")
    prompt = f"{row['description']}\n\n{STDIN}"
    if "inputs" in row:
        return _code(
            name,
            row["name"],
            prompt,
            _by_statement(row["description"], list(zip(row["inputs"], row["outputs"])), 10.0),
        )
    public, private, generated = (
        tuple(zip(row[key]["input"], row[key]["output"]))
        for key in ("public_tests", "private_tests", "generated_tests")
    )
    if any("!" in output and "?" in output for _, output in public):
        raise Skip("interactive")
    limit = row.get("time_limit") or {}
    seconds = (limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9
    return _code(
        name,
        row["name"],
        prompt,
        Suite("stdin", public, private + generated, seconds=min(3 * seconds, 20.0) or 10.0),
    )  # times 3: for Python


# ---------------------------------------------------------------------------------------- the table

OTHER = {"train": "test", "test": "train"}
LCB = {f"v{n}": (f"test{n if n > 1 else ''}.jsonl",) for n in range(1, 7)}
LCB |= {f"release_v{n}": tuple(LCB[f"v{i}"][0] for i in range(1, n + 1)) for n in range(1, 7)}
SOURCES = {
    "gsm8k": Source("openai/gsm8k", _gsm8k, {"train": "train", "test": "test"}, "main"),
    "math500": Source(
        "HuggingFaceH4/MATH-500",
        lambda row, name: _math(row, name, id="unique_id"),
        {"test": "test"},
    ),
    "aime24": Source("HuggingFaceH4/aime_2024", _aime24, {"test": "train"}),
    "aime25": Source("math-ai/aime25", _math, {"test": "test"}),
    "olympiadbench": Source(
        "Hothan/OlympiadBench", _olympiad, {"test": "train"}, "OE_TO_maths_en_COMP"
    ),
    "polaris": Source("POLARIS-Project/Polaris-Dataset-53K", _polaris, {"train": "train"}),
    "dapo": Source("open-r1/DAPO-Math-17k-Processed", _dapo, {"train": "train"}, "en"),
    "humaneval": Source(
        "openai/openai_humaneval", _humaneval, {"test": "test"}, "openai_humaneval"
    ),
    "mbpp": Source(
        "google-research-datasets/mbpp",
        _mbpp,
        {"train": "train", "test": "test"},
        "full",
        options="sanitized",
        in_split=lambda row, split: (
            10 < row["task_id"] <= 510 if split == "test" else row["task_id"] > 600
        ),
    ),
    "livecodebench": Source(
        "livecodebench/code_generation_lite",
        _livecodebench,
        {"test": "test"},
        files=LCB,
        options=r"(release_)?v[1-6]|\d{4}-\d\d-\d\d\.\.\d{4}-\d\d-\d\d",
    ),
    "apps": Source(
        "codeparrot/apps",
        _apps,
        {"train": "train", "test": "test"},
        options="introductory|interview|competition",
        files={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    ),
    "codecontests": Source(
        "deepmind/code_contests",
        _codecontests,
        {"train": "train", "test": "test"},
        columns=(
            "name",
            "description",
            "public_tests",
            "private_tests",
            "generated_tests",
            "time_limit",
            "input_file",
            "output_file",
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
        split: "train" or "test"; a set that has only one gives that one.
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
        file = _local(name, split, data_dir)
    rows = rows_of(file) if file else _from_hub(name, source, split, seed)

    skipped = Counter()
    questions = {}
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
            continue
        if not question.id:
            digest = hashlib.sha256(question.prompt.encode()).hexdigest()
            question = replace(question, id=digest[:12])
        questions[question.prompt] = question
        if source.columns and not file and len(questions) >= size:
            break  # a stream, already in random order
    num_drawn = min(size, len(questions))
    drawn = random.Random(f"{name} {seed}").sample(list(questions.values()), num_drawn)
    return drawn, skipped


# What a conversion raises on a row of another shape.
ROW_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError)


def _local(name: str, split: str, data_dir: str) -> pathlib.Path:
    """The file of a set in a folder; its name begins with the set's.

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
    versions = [option for option in options if option in LCB or option == "sanitized"]

    def names_versions(path: pathlib.Path) -> bool:
        return all(version in path.name for version in versions)

    def preference(path: pathlib.Path) -> tuple:
        names_other = OTHER[split] in path.name
        names_split = split in path.name
        length = len(path.name)
        return (not names_versions(path), names_other, not names_split, length, path.name)

    file = min(files, key=preference)
    second_best = "and is taken for want of a better one"
    if not names_versions(file):
        log.info(f"{name}: {file} does not name {', '.join(versions)}, {second_best}")
    if OTHER[split] in file.name:
        log.info(f"{name}: {file} names the other split, {OTHER[split]}, {second_best}")
    return file


def rows_of(path: pathlib.Path):
    """The rows of a .jsonl, .jsonl.gz or .parquet file, one at a time.

    Raises UserError with the line that is wrong.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(16):
                yield from batch.to_pylist()
            return
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse_row(path, number, line)
    except ImportError:
        raise UserError(f"{path}: pip install pyarrow to read parquet files") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not a UTF-8 text file'}") from None


def _from_hub(name: str, source: Source, split: str, seed: int):
    base, *options = name.split("@")
    hint = f"give --data-dir with {base}.jsonl"
    try:
        if source.files:
            from huggingface_hub import hf_hub_download

            version = "v6" if source.files is LCB else split
            for option in options:
                if option in source.files:
                    version = option
            for file in source.files[version]:
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


# ------------------------------------------------------------------------------------------ overlap


def overlap(question: str, others: "Shingles") -> bool:
    """Whether a text is a near-duplicate of one in another set.

    It has the same words, or half of its runs of eight words in common with them.

    >>> overlap("What is  the SUM of 2, and 3?", Shingles(["What is the sum of 2 and 3?"]))
    True
    """
    words = _words(question)
    runs = {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
    return tuple(words) in others.texts or bool(runs) and len(runs & others.runs) >= len(runs) / 2


class Shingles:
    """The words of many texts, and their runs of eight words."""

    def __init__(self, texts):
        lists = [_words(text) for text in texts]
        self.texts = {tuple(words) for words in lists}
        self.runs = {tuple(words[i : i + 8]) for words in lists for i in range(len(words) - 7)}


def _words(text):
    return re.findall(r"\w+", text.casefold())
