"""Shapes of designs: which scripts are new, and which the cold start has shown.

The shape of a script is the script without the names and the numbers of its question. A model's
folder keeps the shapes of its cold start in SHAPES_FILE, as hashes; sft.py and tiny/build.py write
it. So a run can say how many of its designs nobody has shown, and whether they win.

Test: `pytest tests/test_metrics.py`. Read next: records.py.
"""

import hashlib
import json
import pathlib
import re

from designer import extract_script
from lib import cli
from lib.files import atomic_write

SHAPES_FILE = "design_shapes.json"


def shape(question: str, script: str) -> str:
    """
    >>> shape("What is Zava's code plus 2?", 'submit(n("code of Zava plus 2"))  # code')
    'submit(n("code of _ plus _"))  # code'
    """
    own = set(re.findall(r"[A-Z]\w*|\d+", question))
    return re.sub(r"\w+", lambda match: "_" if match[0] in own else match[0], script)


def shape_hash(question: str, script: str) -> str:
    return hashlib.sha256(shape(question, script).encode("utf-8", "replace")).hexdigest()[:10]


def write_shapes(folder: pathlib.Path, rows: list[tuple], earlier=None) -> None:
    """Keep the shapes of a cold start's designs. rows: (role, messages, completion)."""
    hashes = set(earlier or ())
    for role, messages, completion in rows:
        if role == "designer":
            hashes.add(shape_hash(messages[-1]["content"], extract_script(completion)))
    atomic_write(folder / SHAPES_FILE, json.dumps(sorted(hashes)) + "\n")


def copy_shapes(model: str, folder: pathlib.Path) -> None:
    """A checkpoint keeps what its model knows."""
    shapes = read_shapes(model)
    if shapes is not None:
        atomic_write(folder / SHAPES_FILE, json.dumps(sorted(shapes)) + "\n")


def read_shapes(model: str) -> frozenset[str] | None:
    """The shapes of a model's cold start; None if its folder keeps none."""
    path = pathlib.Path(cli.model_path(model)) / SHAPES_FILE
    return frozenset(json.loads(path.read_text())) if path.exists() else None
