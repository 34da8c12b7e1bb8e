"""Verdicts per second, for math and for code, beside the plain way; medians of 3 rounds, all from
one run. `python tests/bench_grade.py`

Code: 100 programs x 10 tests against a `subprocess.run` of the interpreter per test, one after the other and 64 at once. Asserts nothing.
"""

import asyncio
import concurrent.futures
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from grading import grade_math  # noqa: E402
from programs import Suite, grade  # noqa: E402
from sandbox import Sandbox  # noqa: E402

CASES = tuple((f"{i} {i + 1}\n", f"{2 * i + 1}\n") for i in range(10))
STDIN = Suite("stdin", CASES)
CALLS = Suite("call", tuple(([i, i + 1], 2 * i + 1) for i in range(10)), (), "f")
PROGRAM, FUNCTION, COUNT = "print(sum(map(int, input().split())))", "def f(a, b): return a + b", 100


def plain(case):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM], input=case[0], capture_output=True, text=True
    )
    assert done.stdout == case[1]


def rate(count, function):
    started = time.perf_counter()
    function()
    return count / (time.perf_counter() - started)


async def code(tests, program):
    async with Sandbox() as sandbox:
        started, gate = time.perf_counter(), asyncio.Semaphore(16)

        async def one():
            async with gate:
                assert await grade(sandbox, tests, program) == 1.0

        await asyncio.gather(*(one() for _ in range(COUNT)))
        return 10 * COUNT / (time.perf_counter() - started)


def main():
    found = {
        name: []
        for name in (
            "stdin tests, sandbox",
            "calls, sandbox",
            "plain subprocess, one by one",
            "plain subprocess, 64 at once",
        )
    }
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for _ in range(3):
            found["stdin tests, sandbox"].append(asyncio.run(code(STDIN, PROGRAM)))
            found["calls, sandbox"].append(asyncio.run(code(CALLS, FUNCTION)))
            found["plain subprocess, one by one"].append(
                rate(200, lambda: [plain(CASES[i % 10]) for i in range(200)])
            )
            found["plain subprocess, 64 at once"].append(
                rate(400, lambda: list(pool.map(plain, [CASES[i % 10] for i in range(400)])))
            )
    base = {name: statistics.median(values) for name, values in found.items()}
    for name, value in base.items():
        print(
            f"{name:30} {value:7.0f} verdicts/s, {value / base['plain subprocess, one by one']:6.1f} times one by one, "
            f"{value / base['plain subprocess, 64 at once']:6.1f} times 64 at once"
        )
    grade_math(r"\frac{1}{2}", r"\boxed{\frac{2}{4}}")  # starts the worker
    print(
        f"math, integers                 {statistics.median(rate(2000, lambda: [grade_math('42', chr(92) + 'boxed{42}') for _ in range(2000)]) for _ in range(3)):7.0f} verdicts/s"
    )
    print(
        f"math, math-verify              {statistics.median(rate(60, lambda: [grade_math(f'{chr(92)}frac{{{i}}}{{7}}', f'{chr(92)}boxed{{{i}/7}}') for i in range(60)]) for _ in range(3)):7.0f} verdicts/s"
    )


if __name__ == "__main__":
    main()
