"""A set of questions of one's own.

python train.py --plugin examples/questions.py --tasks sums
"""

import random

from data_types import Question
from lib.split import held_out


def sums(split, seed, size):
    """Sums of two numbers. No question is on both sides: `held_out` hashes its text."""
    questions = []
    for a in range(100):
        for b in range(100):
            prompt = f"What is {a} + {b}?"
            if held_out(prompt) == (split == "heldout"):
                questions.append(Question(f"sum-{a}-{b}", prompt, str(a + b), family="sums"))
    random.Random(seed).shuffle(questions)
    return questions[:size]


TASKS = {"sums": sums}
