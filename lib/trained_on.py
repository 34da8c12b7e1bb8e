"""What a model was trained on: eval.py refuses to ask it that.

A run keeps hashes of its training questions, and of those that the models it began with were
trained on, in TRAINED_FILE; each folder of its models has a copy. sft.py keeps those of the
questions in its samples. So a file that was trained on is known by any name, after any number of
trainings.

Source: ours.

Test: `pytest tests/test_trained_on.py`. Read next: records.py.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable

from lib import cli
from lib.files import atomic_write

TRAINED_FILE = "trained_on.json"


def hash_of(question: str) -> str:
    return hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:12]


def read(models: Iterable[str | None]) -> set[str]:
    """The hashes in these models' folders. A model that is elsewhere has none."""
    found = set()
    for model in filter(None, models):
        path = pathlib.Path(cli.model_path(model)) / TRAINED_FILE
        if path.is_file():
            found |= set(json.loads(path.read_text()))
    return found


def write(folder: pathlib.Path, models: Iterable[str | None], questions: Iterable[str]) -> None:
    """Keep the texts of `questions` and what the models were trained on before."""
    hashes = read(models) | {hash_of(question) for question in questions}
    atomic_write(folder / TRAINED_FILE, json.dumps(sorted(hashes)) + "\n")


def copy(run: pathlib.Path, folder: pathlib.Path) -> None:
    """From a run's folder to one of its models'."""
    if (run / TRAINED_FILE).exists():
        shutil.copyfile(run / TRAINED_FILE, folder / TRAINED_FILE)
