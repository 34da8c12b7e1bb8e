"""Speed of grading: verdicts per second for math and for code, beside plain subprocesses.

    python -m experiments.bench.grade

Code: 100 programs with 10 tests each, in the sandbox. "stdin tests" give a program its input and
read what it prints; "calls" call its function. Beside it, the plain way: a `subprocess.run` of the
interpreter for every test, one after the other and 64 at the same time. Math: answers that are
integers, which need no more than a comparison, and fractions, which math-verify decides.

It prints verdicts per second, and for code the ratios to both plain ways: above 1 times, the
sandbox is faster. Every number is the median of 3 rounds, in which all kinds take turns. It asserts
only that the programs' verdicts are right: on a shared machine only the ratios can be compared.
Test: by hand, the command above. Read next: pages.py.
"""

import asyncio
import concurrent.futures
import statistics
import subprocess
import sys
import time

from benchmarks.code_grading import Suite, grade_program
from benchmarks.math_grading import grade_math
from sandbox import Sandbox

ROUNDS = 3
NUM_PROGRAMS = 100
MAX_AT_ONCE = 16  # programs that are graded at the same time
NUM_SUBPROCESSES = {1: 200, 64: 400}  # how many are started, by how many at once
NUM_INTEGERS = 2000  # checks of a round that compare integers
NUM_FRACTIONS = 60  # checks of a round that need math-verify

NUM_CASES = 10
STDIN_CASES = tuple((f"{i} {i + 1}\n", f"{2 * i + 1}\n") for i in range(NUM_CASES))
STDIN = Suite("stdin", STDIN_CASES)
STDIN_PROGRAM = "print(sum(map(int, input().split())))"
CALL = Suite("call", tuple(([i, i + 1], 2 * i + 1) for i in range(NUM_CASES)), function="f")
CALL_PROGRAM = "def f(a, b): return a + b"


async def sandbox_rate(tests: Suite, program: str) -> float:
    """Verdicts per second in the sandbox."""
    gate = asyncio.Semaphore(MAX_AT_ONCE)

    async def grade_one(sandbox):
        async with gate:
            assert await grade_program(sandbox, tests, program) == 1.0

    async with Sandbox() as sandbox:
        started = time.perf_counter()
        await asyncio.gather(*[grade_one(sandbox) for _ in range(NUM_PROGRAMS)])
        return NUM_CASES * NUM_PROGRAMS / (time.perf_counter() - started)


def subprocess_rate(at_once: int) -> float:
    """Verdicts per second with an interpreter per test."""
    count = NUM_SUBPROCESSES[at_once]
    cases = [STDIN_CASES[i % NUM_CASES] for i in range(count)]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        started = time.perf_counter()
        list(pool.map(run_subprocess, cases))
        return count / (time.perf_counter() - started)


def run_subprocess(case: tuple[str, str]) -> None:
    given, expected = case
    command = [sys.executable, "-I", "-S", "-c", STDIN_PROGRAM]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.stdout == expected


def integer_rate() -> float:
    """Math verdicts per second where integers are compared."""
    started = time.perf_counter()
    for _ in range(NUM_INTEGERS):
        grade_math("42", r"\boxed{42}")
    return NUM_INTEGERS / (time.perf_counter() - started)


def fraction_rate() -> float:
    """Math verdicts per second where math-verify decides."""
    started = time.perf_counter()
    for i in range(NUM_FRACTIONS):
        grade_math(rf"\frac{{{i}}}{{7}}", rf"\boxed{{{i / 7}}}")
    return NUM_FRACTIONS / (time.perf_counter() - started)


def main() -> None:
    measurements = {
        "stdin tests, sandbox": lambda: asyncio.run(sandbox_rate(STDIN, STDIN_PROGRAM)),
        "calls, sandbox": lambda: asyncio.run(sandbox_rate(CALL, CALL_PROGRAM)),
        "plain subprocess, one by one": lambda: subprocess_rate(1),
        "plain subprocess, 64 at once": lambda: subprocess_rate(64),
        "math, integers": integer_rate,
        "math, math-verify": fraction_rate,
    }
    grade_math(r"\frac{1}{2}", r"\boxed{\frac{2}{4}}")  # starts the worker
    rates = {name: [] for name in measurements}
    for _ in range(ROUNDS):
        for name, measure in measurements.items():
            rates[name].append(measure())

    medians = {name: statistics.median(values) for name, values in rates.items()}
    one_by_one = medians["plain subprocess, one by one"]
    at_once = medians["plain subprocess, 64 at once"]
    for name, value in medians.items():
        line = f"{name:30} {value:7.0f} verdicts/s"
        if not name.startswith("math"):
            line += f", {value / one_by_one:6.1f} times one by one"
            line += f", {value / at_once:6.1f} times 64 at once"
        print(line)


if __name__ == "__main__":
    main()
