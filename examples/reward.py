"""A reward of one's own: 1 for the right answer, less for a long reply.

python train.py --plugin examples/reward.py
"""

from tasks import grade


def reward(question, answer):
    """1 if right; 0.1 less for each hundred characters after the first, but never below 0.5."""
    return grade(question, answer) * min(1, max(0.5, 1.1 - 0.001 * len(answer)))
