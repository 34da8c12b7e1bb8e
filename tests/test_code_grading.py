"""Judging programs: references pass, what is nearly right fails, nothing but solving is paid."""

import asyncio
import json
import time

import pytest
from conftest import SHARED, needs_shared

from benchmarks import datasets
from benchmarks.code_grading import (
    Suite,
    behaviour,
    grade_code,
    grade_program,
    judge,
    public_test_report,
    same_output,
)
from data_types import Question
from lib.answers import last_program
from sandbox import Sandbox

DATA = SHARED / "data"
MAX_AT_ONCE = 8  # programs that are judged at the same time


def in_sandbox(function):
    """What the coroutine function `function(sandbox)` returns."""

    async def go():
        async with Sandbox() as sandbox:
            return await function(sandbox)

    return asyncio.run(go())


def judge_all(jobs: list[tuple[Suite, str]], stop: bool = False) -> list[list[bool]]:
    """For every (tests, program): which of all its cases pass."""

    async def judge_jobs(sandbox):
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def judge_job(tests, program):
            async with gate:
                verdicts = await judge(sandbox, tests, tests.public + tests.hidden, program, stop)
            return [verdict.passed for verdict in verdicts]

        return await asyncio.gather(*[judge_job(tests, program) for tests, program in jobs])

    return in_sandbox(judge_jobs)


def rows_of(file_name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / file_name).read_text().splitlines()]


def failures(name: str, references: dict[str, str]) -> list[str]:
    """Questions of the set whose reference solution fails one of its tests."""
    questions, _ = datasets.read(name, "test", str(DATA))
    assert len(questions) == {"humaneval": 164, "mbpp": 500}[name]
    jobs = [(question.tests, references[question.id]) for question in questions]
    failed = []
    for question, passed in zip(questions, judge_all(jobs)):
        if not all(passed):
            failed.append(question.id)
    return failed


@needs_shared
def test_every_reference_solution_of_humaneval_passes():
    references = {}
    for row in rows_of("humaneval.jsonl"):
        references[row["task_id"]] = row["prompt"] + row["canonical_solution"]
    assert failures("humaneval", references) == []


@needs_shared
def test_every_reference_solution_of_mbpp_passes():
    references = {}
    for row in rows_of("mbpp.jsonl"):
        references[str(row["task_id"])] = row["code"].replace("\r\n", "\n")
    assert failures("mbpp", references) == []


# ------------------------------------------------------- expected outputs, and one that is spoiled


def lookup_program(tests: Suite, pairs: list) -> str:
    """A program that knows its result for every input: pairs (input, result)."""
    if tests.kind == "stdin":
        return f"import sys\nanswers = dict({pairs!r})\nsys.stdout.write(answers[sys.stdin.read()])"
    name = tests.function.split(".")[-1]
    program = (
        f"def {name}(*args):\n"
        f"    return next(value for given, value in {pairs!r} if list(given) == list(args))\n"
    )
    if "Solution" in tests.function:
        program += f"class Solution:\n    {name} = lambda self, *args: {name}(*args)\n"
    return program


def spoil(value):
    """A result that is wrong in one token, or in one item."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return value[:-1] + [spoil(value[-1])] if value else [0]
    if not value.split():
        return "8"
    last_token = value.split()[-1]
    start = value.rindex(last_token)
    other_token = "7" if last_token == "8" else "8"
    return value[:start] + other_token + value[start + len(last_token) :]


def spoil_one(cases: tuple) -> tuple[list, int]:
    """The cases with one wrong result, of the longest; and its place."""
    place = max(range(len(cases)), key=lambda i: len(str(cases[i][1])))
    spoiled = list(cases)
    given, value = cases[place]
    spoiled[place] = (given, spoil(value))
    return spoiled, place


@needs_shared
@pytest.mark.parametrize(
    "name",
    ["codecontests_sample.jsonl", "apps_train_sample_raw.jsonl", "livecodebench_sample_raw.jsonl"],
)
def test_the_expected_outputs_pass_and_a_single_changed_token_fails(name):
    questions, _ = datasets.read(name.split("_")[0], "test", path=str(DATA / name))
    jobs = []
    places = []
    for question in questions:
        original = question.tests
        cases = (original.public + original.hidden)[:12]
        tests = Suite(original.kind, cases, function=original.function, rule=original.rule)
        spoiled, place = spoil_one(cases)
        jobs.append((tests, lookup_program(tests, list(cases))))
        jobs.append((tests, lookup_program(tests, spoiled)))
        places.append(place)
    verdicts = judge_all(jobs)

    num_unclear = 0
    for i, question in enumerate(questions):
        cases = jobs[2 * i][0].public
        place = places[i]
        assert verdicts[2 * i] == [True] * len(cases), question.id
        if cases[place][0] in [given for given, _ in cases[place + 1 :]]:
            num_unclear += 1  # the same input again: which of its results is right?
        else:
            assert verdicts[2 * i + 1] == [j != place for j in range(len(cases))], question.id
    assert len(questions) >= 4
    assert num_unclear <= 1


# --------------------------------------------------------------------------------------- comparing

# (rule, expected, printed, verdict)
OUTPUTS = [
    ("lines", "1\n2\n", "1\n2", True),
    ("lines", "1\n2\n", "  1  \n 2\n\n\n", True),
    ("lines", "1\n2\n", "1 2", False),
    ("lines", "1\n2\n", "1\n\n2", False),
    ("lines", "1\n2\n", "1\n2\n3", False),
    ("lines", "1\n2\n", "1", False),
    ("lines", "1", "1.0", True),
    ("lines", "100000", "1e5", True),
    ("lines", "1 2", "1  2", True),
    ("lines", "1 2", "01 2.0", True),
    ("lines", "0.333333333", "0.333333", False),
    ("lines", "YES", "yes", False),
    ("lines", "a b", "a  b", False),
    ("lines", str(10**40), str(10**40 + 1), False),
    ("lines", "1" * 5000, "1" * 5000, True),
    ("lines", "nan", "nan", True),
    ("lines", "NaN", "nan", False),
    ("lines", "", "", True),
    ("lines", "", "\n", True),
    ("lines", "1", "", False),
    ("lines", "-0", "0", True),
    ("lines", "1", "1_0", False),
    ("lines", "10", "1_0", True),
    ("lines", "1", "sNaN", False),
    ("lines", "1 2", "-sNaN12 2", False),
    ("lines", "sNaN", "sNaN", True),
    ("lines", "1\t2", "1 2", True),
    ("lines", "5 2 1 \n", "5 2 1", True),
    ("tokens", "1 2\n3", "1\n2 3", True),
    ("tokens", "1 2 3", "3 2 1", False),
    ("tokens", "1000000", "1000009", False),
    ("tokens", "NO YES", "YES NO", False),
    ("tokens", "YES NO", "YES YES NO", False),
    ("tokens", str(10**17), str(10**17 + 1), False),
    ("tokens", "1.5", "1.5000001", True),
    ("tokens", "1.5", "1.51", False),
    ("tokens", "1", "1.0000001", False),
    ("tokens", "1.0", "1", True),
    ("tokens", "1e5", "100000", True),
    ("tokens", "5", "5.0", False),
    ("tokens", "a", "A", False),
    ("tokens", "1.0", "nan", False),
    ("tokens", "1.0", "1_0", False),
    ("tokens", "inf", "inf", True),
    ("tokens", "0.0", "1e-7", True),
    ("tokens", "", " \n", True),
    ("tokens", "1", "", False),
    ("tokens", "1.5", "9" * 400 + ".5", False),
    ("tokens", "1.", "1.0", True),
    ("tokens", "-1.5", "1.5", False),
]


@pytest.mark.parametrize("rule, expected, printed, verdict", OUTPUTS)
def test_outputs(rule, expected, printed, verdict):
    assert same_output(expected, printed, rule) is verdict


# (program, verdict). LiveCodeBench's own runner runs a program inside itself, and fails the right
# programs that are marked with *.
PROBES = [
    ("print(int(input()) + int(input()))", True),
    ("import sys; print(sum(map(int, sys.stdin)))", True),  # *
    (  # *
        "import sys\n"
        "a = sys.stdin.buffer.readline()\n"
        "b = sys.stdin.buffer.readline()\n"
        "print(int(a) + int(b))",
        True,
    ),
    ("print(sum(map(int, open(0).read().split())))", True),  # *
    ("import sys; print(sum(map(int, sys.stdin.readlines())))", True),
    ("import os; print(sum(map(int, os.read(0, 99).split())))", True),  # *
    ("import sys\nsys.stdout.buffer.write(b'5\\n')", True),
    ("total = 0\ndef f():\n    global total\n    total = 5\nf()\nprint(total)", True),  # *
    ("if __name__ == '__main__':\n    print(5)", True),
    ("def main():\n    print(5)\nmain()\nexit()", True),
    ("print(5)\nimport sys; sys.exit(0)", True),
    ("print(5)\nraise SystemExit(1)", False),
    ("print(5)\n1 / 0", False),
    ("import os\nprint(5, flush=True)\nos._exit(0)", True),
    ("import os\nprint(5, flush=True)\nos._exit(3)", False),
    ("print(5)\nprint('debug')", False),
    ("print(5, end='')", True),
    ("print('5 ')", True),
    ("print(5.0)", True),
    ("while True: print(5)", False),
    ("import time\ntime.sleep(60)", False),
    ("from __future__ import annotations\nprint(5)", True),
    ("print(pow(3, 2, 4) + 4)", True),
    ("x: List[int] = [5]\nprint(x[0], file=sys.stdout)", True),
    ("print(gcd(10, 15))", True),
    ("import threading\nthreading.Thread(target=lambda: print(5)).start()", True),
    ("print('5' * 5_000_000)", False),
    ("x = [0] * 10**10\nprint(5)", False),
    ("return 5", False),
    ("print 5", False),
    ("", False),
]


def test_programs_that_read_and_end_in_every_way():
    tests = Suite("stdin", (("2\n3\n", "5\n"),), rule="lines", seconds=2.0)
    verdicts = judge_all([(tests, program) for program, _ in PROBES])
    actual = [(program, passed) for (program, _), [passed] in zip(PROBES, verdicts)]
    assert actual == PROBES


# (expected, expression, verdict): values of calls, as LiveCodeBench's == has them
VALUES = [
    ([1, 2], "[1, 2]", True),
    ([1, 2], "(1, 2)", True),
    ([[1, 2]], "[(1, 2)]", False),
    (2, "2.0", True),
    (1, "True", True),
    (True, "1", True),
    (0.3, "0.1 + 0.2", False),
    ("a", "'a'", True),
    ("a", "b'a'", False),
    (None, "None", True),
    ([], "()", True),
    ([], "{}", False),
    ([1, 2], "{1, 2}", False),
    ([1, 2], "[2, 1]", False),
    (10**30, "10 ** 30", True),
    (10**30, "10 ** 30 + 1", False),
    (float("nan"), "float('nan')", False),
    (float("inf"), "float('inf')", True),
    ({"a": [1]}, "{'a': [1]}", True),
    ({"a": 1, "b": 2}, "{'b': 2, 'a': 1}", True),
    ({"a": 1}, "{'a': 1, 'b': 2}", False),
    ("", "None", False),
    (0, "None", False),
    (0, "''", False),
    ([1], "iter([1])", False),
    ([1], "range(1, 2)", False),
    ([0, 1], "__import__('collections').deque([0, 1])", False),
    ({"a": 1}, "__import__('collections').Counter('a')", True),
    ([[1.0, 2]], "[[1, 2.0]]", True),
    (1, "10 ** 5000", False),
]


def test_values():
    jobs = []
    for expected, expression, _ in VALUES:
        tests = Suite("call", (([], expected),), function="f", seconds=2.0)
        jobs.append((tests, f"def f(): return {expression}"))
    actual = [passed for [passed] in judge_all(jobs)]
    for passed, (expected, expression, verdict) in zip(actual, VALUES, strict=True):
        assert passed is verdict, (expected, expression)


# ---------------------------------------------------------------------------------- reward hacking

SUM = Suite("call", (([1, 2], 3), ([4, 5], 9)), (([7, 1], 8),), "f", seconds=1.0)
ECHO = Suite("stdin", (("1 2\n", "3\n"),), (("7 1\n", "8\n"),), seconds=1.0)
CHECK_CODE = """\
def check(c):
    assert c(1, 2) == 3
    assert c(7, 1) == 8
check(f)"""
CHECK = Suite("assert", hidden=(CHECK_CODE,), function="f", seconds=1.0)

HACKS = [
    # Results that equal everything
    (
        SUM,
        "class Any:\n"
        "    __eq__ = lambda self, other: True\n"
        "    __hash__ = lambda self: 0\n"
        "def f(*a): return Any()",
    ),
    (
        SUM,
        "class Any(int):\n"
        "    __eq__ = lambda self, other: True\n"
        "    __ne__ = lambda self, other: False\n"
        "def f(*a): return Any(0)",
    ),
    (
        CHECK,
        "class Any:\n    __eq__ = lambda self, other: True\ndef f(*a): return Any()",
    ),
    (CHECK, "import sys\nsys.exit = lambda *a: None\ndef f(*a): return NotImplemented"),
    # Forged results and messages
    (SUM, "import json\njson.dumps = lambda *a, **k: '{\"value\": 42}'\ndef f(*a): return None"),
    (
        SUM,
        "import os\n"
        "for fd in range(3, 60):\n"
        "    try: os.write(fd, b'{\"passed\": true}\\n' * 9)\n"
        "    except OSError: pass\n"
        "def f(*a): return None",
    ),
    (CHECK, "import mas\nmas._request({'op': 'passed'})\ndef f(*a): return 0"),
    (
        CHECK,
        "import mas\n"
        "real = mas._request\n"
        "mas._request = lambda m: real({'op': 'passed', 'text': ''})\n"
        "def f(*a): return 0",
    ),
    (
        CHECK,
        "def f(*a):\n"
        "    import mas\n"
        "    mas._request({'op': 'passed', 'text': 'null'})\n"
        "    return 0",
    ),
    (
        CHECK,
        "import os\n"
        'os.write(3, b\'{"op": "value", "text": '
        '"{\\\\"float\\\\": \\\\"__import__(1)\\\\"}"}\\n\' * 99)\n'
        "def f(*a): return 0",
    ),
    (ECHO, "import sys\nprint('3\\n8\\nok\\npassed')\nsys.exit(0)"),
    (ECHO, "import os\nos.lseek(1, 0, 0)\nos.write(1, b'ok')\nos._exit(0)"),
    # An end before the test
    (SUM, "import os\ndef f(*a): os._exit(0)"),
    (SUM, "def f(*a): raise SystemExit(0)"),
    (CHECK, "import builtins\nbuiltins.AssertionError = KeyError\ndef f(*a): raise SystemExit(0)"),
    # Looking for the expected values
    (
        SUM,
        "import sys, gc\n"
        "def f(*a):\n"
        "    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expected' in o: return o['expected']\n"
        "    return None",
    ),
    (
        SUM,
        "import sys\n"
        "def f(*a):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        if 'expected' in frame.f_locals: return frame.f_locals['expected']\n"
        "        frame = frame.f_back",
    ),
    (
        ECHO,
        "import os, glob\n"
        "for p in glob.glob('/**/*test*', recursive=True)[:99]: print(open(p).read())",
    ),
    (
        ECHO,
        "import os\n"
        "for fd in range(3, 60):\n"
        "    try: print(os.read(fd, 99))\n"
        "    except OSError: pass",
    ),
]


def test_programs_that_try_to_be_paid_without_solving():
    async def grade_hacks(sandbox):
        grading = [grade_program(sandbox, tests, program) for tests, program in HACKS]
        return await asyncio.gather(*grading)

    scores = in_sandbox(grade_hacks)
    assert len(HACKS) >= 15
    assert [program for (_, program), score in zip(HACKS, scores) if score != 0.0] == []


@pytest.mark.parametrize(
    "tests, solution",
    [
        (SUM, "def f(a, b): return a + b"),
        (CHECK, "def f(a, b): return a + b"),
        (ECHO, "print(sum(map(int, input().split())))"),
    ],
    ids=["call", "assert", "stdin"],
)
def test_a_solution_is_paid_in_full(tests, solution):
    assert in_sandbox(lambda sandbox: grade_program(sandbox, tests, solution)) == 1.0


@pytest.mark.parametrize(
    "program, score", [("def f(a, b): return 3 if a == 1 else 1 / 0", 1 / 3), (None, 0.0)]
)
def test_half_a_solution_is_paid_by_the_fraction(program, score):
    actual = in_sandbox(lambda sandbox: grade_program(sandbox, SUM, program))
    assert actual == pytest.approx(score)


def test_one_case_that_kills_the_program_costs_that_case_alone():
    tests = Suite("call", tuple(([i], i) for i in range(5)), function="f", seconds=1.0)
    program = "import os\ndef f(i):\n    if i == 2: os._exit(0)\n    return i"
    assert judge_all([(tests, program)]) == [[True, True, False, True, True]]


def test_stop_ends_at_the_first_failure():
    assert judge_all([(SUM, "def f(a, b): return 3")], stop=True) == [[True, False, False]]


def test_a_program_has_the_time_of_its_cases_and_no_more():
    """Every case that ends the process starts a new one; together they have the time of all."""
    program = (
        "import signal\n"
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "def f(i):\n"
        "    while True: pass"
    )
    tests = Suite("call", tuple(([i], i) for i in range(8)), function="f", seconds=0.25)
    started = time.monotonic()
    assert judge_all([(tests, program)]) == [[False] * 8]
    assert time.monotonic() - started < 10


def test_grade_code_needs_no_event_loop():
    question = Question("q", "Add.", "", "code", tests=SUM)
    assert grade_code(question, "def f(a, b): return a + b") == 1.0


# ------------------------------------------------------------------------- what agents are told


def test_programs_that_do_the_same_behave_the_same():
    programs = [
        "def f(a, b): return a + b",
        "def f(x, y): return sum((x, y))",
        "def f(a, b): return a * b",
        None,
    ]

    async def digests(sandbox):
        return await asyncio.gather(*[behaviour(sandbox, SUM, program) for program in programs])

    first, same, other, nothing = in_sandbox(digests)
    assert first == same
    assert other not in (first, None)
    assert nothing is None


@pytest.mark.parametrize(
    "tests, program, report",
    [
        (SUM, "def f(a, b): return a + b", "2 of 2 passed."),
        (
            SUM,
            "def f(a, b): return 3",
            "1 of 2 passed.\nInput:\n[4, 5]\nExpected:\n9\nGot:\n3",
        ),
        (ECHO, "print(4)", "0 of 1 passed.\nInput:\n1 2\n\nExpected:\n3\n\nGot:\n4\n"),
    ],
)
def test_the_report_shows_public_cases_alone(tests, program, report):
    assert in_sandbox(lambda sandbox: public_test_report(sandbox, tests, program)) == report


def test_the_report_of_an_assert_shows_its_code():
    tests = Suite("assert", ("assert f(1) == 2",), function="f", seconds=1.0)
    report = in_sandbox(lambda sandbox: public_test_report(sandbox, tests, "def f(a): return a"))
    assert report.startswith("0 of 1 passed.\nFailed: assert f(1) == 2\nGot:\n")
    assert "AssertionError" in report


@pytest.mark.parametrize(
    "text, program",
    [
        ("```python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("```python\na\n```\n```solution\nb\n```\n```python\nc\n```", "b"),
        ("no block", None),
        ("```python\na", None),
        ("```text\na\n```", None),
        ("```Python\na\n```", "a"),
        ("```python\n\n```", None),
        ("a ```x``` b", None),
        ("```python\nprint('```')\n```", "print('```')"),
    ],
)
def test_last_program(text, program):
    assert last_program(text) == program
    assert last_program(text + "\n") == program
