"""A building block of one's own: the designer is told its docstring, scripts may call it.

python train.py --plugin examples/block.py
"""


def tournament(agents, referee, text):
    """tournament(agents, referee, text) -> Reply: all answer; the referee compares two at a time.

    It replies 1 or 2; the winner meets the next.
    """
    winner, *others = ask_all(agents, text)  # noqa: F821 - the names of mas.py are there
    for other in others:
        verdict = referee(f"{text}\n\n1: {winner}\n2: {other}\n\nWhich is better, 1 or 2?")
        winner = other if "2" in verdict else winner
    return winner


BLOCKS = [tournament]
