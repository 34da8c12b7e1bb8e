"""A tool of one's own, in the sandbox: an agent replies with a ```lookup block.

python train.py --plugin examples/tool.py
"""


def lookup(text):
    """You can look up the size of a unit: reply with a ```lookup block, its name in it."""
    sizes = {"dozen": 12, "score": 20, "gross": 144}
    return sizes.get(text.strip().lower(), "unknown")


TOOLS = {"lookup": lookup}
