"""The split of a set of questions: which are trained on, which are held out.

Test: `pytest tests/test_tasks.py`. Read next: ../tiny/registry.py.
"""

import hashlib


def held_out(text: str) -> bool:
    """Which side a question is on, by its text alone, so that it can't be on both: a quarter is.

    >>> held_out("What is 12 * 13 + 100?") == held_out("What is 12 * 13 + 100?")
    True
    """
    return hashlib.sha256(text.encode()).digest()[0] % 4 == 0
