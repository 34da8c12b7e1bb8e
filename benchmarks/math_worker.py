"""The worker of math_grading.py: checks answers with math-verify, in a process that can be killed.

    python math_worker.py      reads [gold, answer] as JSON, a line each; prints true or false

It imports nothing of ours.
Test: `pytest tests/test_math_grading.py`. Read next: datasets.py.
"""

import json
import logging
import resource
import sys

import sympy
from math_verify import parse, verify

MEMORY = 4 << 30  # bytes of address space
SMALL = 1e-2  # below it, numbers are compared by their ratio


def check(gold: str, answer: str) -> bool:
    gold, answer = parse("\\boxed{" + gold + "}"), parse("\\boxed{" + answer + "}")
    if not verify(gold, answer):  # gold first: verify is not symmetric
        return False
    numbers = []
    for side in (gold, answer):
        if side and isinstance(side[0], sympy.Expr) and side[0].is_number:
            numbers.append(side[0])
    if len(numbers) < 2 or abs(numbers[0].evalf()) >= SMALL:
        return True
    # verify rounds to 6 decimals: 1/2004! and 1/2006! are the same nothing.
    if numbers[0] == 0:
        return bool(numbers[1] == 0)
    return bool(abs((numbers[0] - numbers[1]) / numbers[0]).evalf(30) < 1e-6)


def main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        question = json.loads(line)
        try:
            result = question is not None and check(*question)
        except Exception:  # boundary: whatever sympy does with a model's text, it is not the answer
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
