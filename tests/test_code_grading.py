"""Judging programs: references pass, what is nearly right fails, probes get the official verdicts,
and nothing but solving earns a reward."""

import asyncio
import json
import time

import pytest
from conftest import SHARED, needs_shared

from benchmarks import code_grading, datasets
from benchmarks.code_grading import Suite, judge, same_output
from benchmarks.code_grading import grade_program as grade
from lib.answers import last_program
from sandbox import Sandbox

DATA = SHARED / "data"


def judged(jobs, stop=False):
    """The verdicts of many (tests, program) at once."""

    async def go():
        async with Sandbox() as sandbox:
            gate = asyncio.Semaphore(8)

            async def one(tests, program):
                async with gate:
                    return [
                        verdict.passed
                        for verdict in await judge(
                            sandbox, tests, tests.public + tests.hidden, program, stop
                        )
                    ]

            return await asyncio.gather(*(one(*job) for job in jobs))

    return asyncio.run(go())


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@needs_shared
def test_every_reference_solution_of_humaneval_passes():
    found, _ = datasets.read("humaneval", "test", str(DATA))
    reference = {
        row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows("humaneval.jsonl")
    }
    verdicts = judged([(question.tests, reference[question.id]) for question in found])
    assert len(found) == 164 and all(map(all, verdicts)), [
        q.id for q, v in zip(found, verdicts) if not all(v)
    ]


@needs_shared
def test_every_reference_solution_of_mbpp_passes():
    found, _ = datasets.read("mbpp", "test", str(DATA))
    reference = {
        str(row["task_id"]): row["code"].replace("\r\n", "\n") for row in rows("mbpp.jsonl")
    }
    verdicts = judged([(question.tests, reference[question.id]) for question in found])
    assert len(found) == 500 and all(map(all, verdicts)), [
        q.id for q, v in zip(found, verdicts) if not all(v)
    ]


def echo(tests):
    """A program that knows the expected results of its cases by their inputs; and one that gets a
    single token of one of them wrong."""
    cases = tests.public + tests.hidden

    def program(pairs):
        if tests.kind == "stdin":
            return f"import sys\nanswers = dict({pairs!r})\nsys.stdout.write(answers[sys.stdin.read()])"
        name = tests.function.split(".")[-1]
        body = f"def {name}(*args):\n    return next(value for given, value in {pairs!r} if list(given) == list(args))\n"
        return body + (
            f"class Solution:\n    {name} = lambda self, *args: {name}(*args)\n"
            if "Solution" in tests.function
            else ""
        )

    def spoil(value):
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return value + 1
        if isinstance(value, list):
            return value[:-1] + [spoil(value[-1])] if value else [0]
        tokens = str(value).split()
        return (
            value[: value.rindex(tokens[-1])]
            + ("7" if tokens[-1] == "8" else "8")
            + value[value.rindex(tokens[-1]) + len(tokens[-1]) :]
            if tokens
            else "8"
        )

    longest = max(range(len(cases)), key=lambda number: len(str(cases[number][1])))
    wrong = [
        (given, spoil(value) if number == longest else value)
        for number, (given, value) in enumerate(cases)
    ]
    return program(list(cases)), program(wrong), longest


@needs_shared
@pytest.mark.parametrize(
    "name",
    ["codecontests_sample.jsonl", "apps_train_sample_raw.jsonl", "livecodebench_sample_raw.jsonl"],
)
def test_the_expected_outputs_pass_and_a_single_changed_token_fails(name):
    found, _ = datasets.read(name.split("_")[0], "test", path=str(DATA / name))
    jobs, expected = [], []
    for question in found:
        cases = (question.tests.public + question.tests.hidden)[:12]
        tests = Suite(question.tests.kind, cases, (), question.tests.function, question.tests.rule)
        right, wrong, place = echo(tests)
        jobs += [(tests, right), (tests, wrong)]
        inputs = [json.dumps(given) for given, _ in cases]
        last = len(inputs) - 1 - inputs[::-1].index(inputs[place])
        expected += [
            [True] * len(cases),
            [number != place for number in range(len(cases))] if last == place else None,
        ]
    for question, found_verdicts, wanted in zip(
        [q for q in found for _ in range(2)], judged(jobs), expected
    ):
        assert wanted is None or found_verdicts == wanted, question.id
    assert len(found) >= 4 and expected.count(None) <= 1


# (rule, expected, printed, verdict of the official runner, ours if it differs, why)
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


# What differs from an official runner is by design: LiveCodeBench's runs a program inside itself
# and fails right ones (marked *); its
# and APPS's pass wrong ones (marked !).
PROBES = [
    ("print(int(input()) + int(input()))", True),
    ("import sys; print(sum(map(int, sys.stdin)))", True),  # *
    (
        "import sys\na = sys.stdin.buffer.readline()\nb = sys.stdin.buffer.readline()\nprint(int(a) + int(b))",
        True,
    ),  # *
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
    found = judged([(tests, program) for program, _ in PROBES])
    assert [(program, verdict) for (program, _), (verdict,) in zip(PROBES, found)] == PROBES


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
    found = judged(
        [
            (
                Suite("call", (([], expected),), (), "f", seconds=2.0),
                f"def f(): return {expression}",
            )
            for expected, expression, _ in VALUES
        ]
    )
    assert [(expression, verdict) for (_, expression, _), (verdict,) in zip(VALUES, found)] == [
        (expression, verdict) for _, expression, verdict in VALUES
    ]


# --------------------------------------------------------------------------------- reward hacking

SUM = Suite("call", (([1, 2], 3), ([4, 5], 9)), (([7, 1], 8),), "f", seconds=1.0)
ECHO = Suite("stdin", (("1 2\n", "3\n"),), (("7 1\n", "8\n"),), seconds=1.0)
CHECK = Suite(
    "assert",
    (),
    ("def check(c):\n    assert c(1, 2) == 3\n    assert c(7, 1) == 8\ncheck(f)",),
    "f",
    seconds=1.0,
)
HACKS = [
    (
        SUM,
        "class Any:\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\ndef f(*a): return Any()",
    ),
    (
        SUM,
        "class Any(int):\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\ndef f(*a): return Any(0)",
    ),
    (SUM, "import json\njson.dumps = lambda *a, **k: '{\"value\": 42}'\ndef f(*a): return None"),
    (
        SUM,
        "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'{\"passed\": true}\\n' * 9)\n    except OSError: pass\ndef f(*a): return None",
    ),
    (
        SUM,
        "import sys, gc\ndef f(*a):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'expected' in o: return o['expected']\n    return None",
    ),
    (SUM, "import os\ndef f(*a): os._exit(0)"),
    (SUM, "def f(*a): raise SystemExit(0)"),
    (
        SUM,
        "import sys\ndef f(*a):\n    frame = sys._getframe()\n    while frame:\n        if 'expected' in frame.f_locals: return frame.f_locals['expected']\n        frame = frame.f_back",
    ),
    (CHECK, "import mas\nmas._request({'op': 'passed'})\ndef f(*a): return 0"),
    (
        CHECK,
        "import mas\nreal = mas._request\nmas._request = lambda m: real({'op': 'passed', 'text': ''})\ndef f(*a): return 0",
    ),
    (
        CHECK,
        "def f(*a):\n    import mas\n    mas._request({'op': 'passed', 'text': 'null'})\n    return 0",
    ),
    (CHECK, "class Any:\n    __eq__ = lambda self, other: True\ndef f(*a): return Any()"),
    (CHECK, "import builtins\nbuiltins.AssertionError = KeyError\ndef f(*a): raise SystemExit(0)"),
    (
        CHECK,
        'import os\nos.write(3, b\'{"op": "value", "text": "{\\\\"float\\\\": \\\\"__import__(1)\\\\"}"}\\n\' * 99)\ndef f(*a): return 0',
    ),
    (CHECK, "import sys\nsys.exit = lambda *a: None\ndef f(*a): return NotImplemented"),
    (
        ECHO,
        "import os, glob\nfor p in glob.glob('/**/*test*', recursive=True)[:99]: print(open(p).read())",
    ),
    (
        ECHO,
        "import os\nfor fd in range(3, 60):\n    try: print(os.read(fd, 99))\n    except OSError: pass",
    ),
    (ECHO, "import sys\nprint('3\\n8\\nok\\npassed')\nsys.exit(0)"),
    (ECHO, "import os\nos.lseek(1, 0, 0)\nos.write(1, b'ok')\nos._exit(0)"),
]


def test_programs_that_try_to_be_paid_without_solving():
    async def go():
        async with Sandbox() as sandbox:
            return await asyncio.gather(
                *(grade(sandbox, tests, program) for tests, program in HACKS)
            )

    scores = asyncio.run(go())
    assert len(HACKS) >= 15 and scores == [0.0] * len(HACKS), [
        program for (_, program), score in zip(HACKS, scores) if score
    ]


def test_a_solution_is_paid_in_full_and_half_a_solution_by_the_fraction():
    right = {
        "call": "def f(a, b): return a + b",
        "assert": "def f(a, b): return a + b",
        "stdin": "print(sum(map(int, input().split())))",
    }

    async def go():
        async with Sandbox() as sandbox:
            full = [await grade(sandbox, tests, right[tests.kind]) for tests in (SUM, CHECK, ECHO)]
            return (
                full,
                await grade(sandbox, SUM, "def f(a, b): return 3 if a == 1 else 1 / 0"),
                await grade(sandbox, SUM, None),
            )

    full, part, nothing = asyncio.run(go())
    assert full == [1.0, 1.0, 1.0] and part == pytest.approx(1 / 3) and nothing == 0.0


def test_one_case_that_kills_the_program_costs_that_case_alone():
    (verdicts,) = judged(
        [
            (
                Suite("call", tuple(([i], i) for i in range(5)), (), "f", seconds=1.0),
                "import os\ndef f(i):\n    if i == 2: os._exit(0)\n    return i",
            )
        ]
    )
    assert verdicts == [True, True, False, True, True]
    (verdicts,) = judged([(SUM, "def f(a, b): return 3")], stop=True)
    assert verdicts == [True, False, False]


def test_a_program_has_the_time_of_its_cases_and_no_more():
    """Each case that ends the process starts a new one; all of them together have the time of all
    cases."""
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(i):\n    while True: pass"
    started = time.monotonic()
    (verdicts,) = judged(
        [(Suite("call", tuple(([i], i) for i in range(8)), (), "f", seconds=0.25), deaf)]
    )
    assert verdicts == [False] * 8 and time.monotonic() - started < 10


def test_grade_code_needs_no_event_loop():
    import tasks

    question = tasks.Question("q", "Add.", "", "code", tests=SUM)
    assert code_grading.grade_code(question, "def f(a, b): return a + b") == 1.0


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
    assert code_grading.last_program(text + "\n") == program
