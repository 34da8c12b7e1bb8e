"""The worker of math_grading.py: checks answers with math-verify, in a process that can be killed.

    python -P math_worker.py      reads [gold, answer] as JSON, a line each; prints true or false

It imports nothing of this project.

Test: `pytest tests/test_math_grading.py`. Read next: code_grading.py.
"""

import json
import logging
import resource
import sys
import time

import sympy
from math_verify import parse, verify

MEMORY = 4 << 30  # bytes of address space
# Of a check. Then the system ends this process: whoever asked may be gone, and can't.
CPU_SECONDS = 10
SMALL = 1e-2  # numbers below it have to agree relatively, too
TOLERANCE = 1e-6  # relative


def check(gold: str, answer: str) -> bool:
    """Whether two LaTeX texts are the same answer. May raise whatever sympy raises."""
    parsed_gold = parse("\\boxed{" + gold + "}")
    parsed_answer = parse("\\boxed{" + answer + "}")
    if not verify(parsed_gold, parsed_answer):  # gold first: verify is not symmetric
        return False
    gold_number = as_number(parsed_gold)
    answer_number = as_number(parsed_answer)
    if gold_number is None or answer_number is None:
        return True
    if abs(gold_number.evalf()) < SMALL:
        # verify rounds to 6 decimals, where 1/2004! and 1/2006! are both 0.
        return same_small_number(gold_number, answer_number)
    return True


def as_number(parsed: list) -> sympy.Expr | None:
    """The number that math-verify has read; None if it has read something else."""
    if parsed and isinstance(parsed[0], sympy.Expr) and parsed[0].is_number:
        return parsed[0]
    return None


def same_small_number(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if gold == 0:
        return bool(answer == 0)
    return bool(abs((gold - answer) / gold).evalf(30) < TOLERANCE)


def main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard_limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for line in sys.stdin:
        question = json.loads(line)
        limit = int(time.process_time()) + CPU_SECONDS
        if hard_limit != resource.RLIM_INFINITY:
            limit = min(limit, hard_limit)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard_limit))
        try:
            result = question is not None and check(*question)
        except Exception:  # boundary: sympy may raise anything on a model's text; then it is wrong
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
