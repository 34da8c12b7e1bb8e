"""Votes: which answers count as one, in designs and in self-consistency alike.

math, rg    those that the grader of math calls equal: "1,000" and "1000.", 0.5 and \\frac{1}{2}
code        programs that do the same on the public tests

Test: `pytest tests/test_answers.py`. Read next: benchmarks/math_grading.py.
"""

import asyncio
import functools

from benchmarks.code_grading import behaviour
from benchmarks.math_grading import same_answer
from lib.answers import committed_answer
from lib.turns import my_turn

MAX_CHARS = 200  # a longer answer equals only itself


async def read_answers(sandbox, question, replies: list[str]) -> tuple[list, list]:
    """What each reply commits to, and which of these count as one (`group_answers`)."""
    answers = []
    for reply in replies:
        await my_turn()
        answers.append(committed_answer(question.kind, reply))
    if len(replies) == 1:
        return answers, answers
    return answers, await group_answers(sandbox, question, answers)


async def group_answers(sandbox, question, answers: list[str | None]) -> list[str | None]:
    """The name of each answer's group; None without an answer. Raises SandboxError."""
    if question.kind == "code":
        groups = [behaviour(sandbox, question.tests, program) for program in answers]
        return await asyncio.gather(*groups)
    if len(set(answers)) == 1:
        return answers
    return await asyncio.to_thread(group_equal, answers)  # math-verify may need some time


def group_equal(answers: list[str | None]) -> list[str | None]:
    r"""Each answer's group, named by its first answer. Equality is not transitive: the first wins.

    >>> group_equal(["1,000", "7", None, "1000."])
    ['1,000', '7', None, '1,000']
    """
    leaders, groups = [], []
    for answer in answers:
        leader = next((leader for leader in leaders if is_same(leader, answer)), None)
        if leader is None and answer is not None:
            leaders.append(answer)
        groups.append(leader or answer)
    return groups


@functools.lru_cache(100_000)
def is_same(leader: str, answer: str | None) -> bool:
    if answer is None or leader == answer:
        return leader == answer
    return max(len(leader), len(answer)) <= MAX_CHARS and same_answer(leader, answer)
