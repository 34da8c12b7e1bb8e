"""Training runs as the tests start them: small, in this process or in one of their own."""

import subprocess
import sys
import time

from conftest import ROOT, SMALL_RUN, lines
from safetensors.torch import load_file

import train


def start(*arguments, launcher=(), flags=SMALL_RUN):
    """Start train.py; `finish` waits for it."""
    command = [sys.executable, *launcher, ROOT / "train.py", *flags, *arguments]
    return subprocess.Popen(
        [str(argument) for argument in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, expected=0):
    """(stdout, stderr) of a run that ends with this exit code."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == expected, out + err
    return out, err


def train_run(*arguments, launcher=(), flags=SMALL_RUN):
    """A run to its end: by a launcher, or in this process, which saves the imports."""
    if launcher:
        finish(start(*arguments, launcher=launcher, flags=flags))
    else:
        train.main([str(argument) for argument in (*flags, *arguments)])


def weights(out, folder="checkpoint"):
    return load_file(out / folder / "model.safetensors")


def tiny_weights(folder: str = "tiny"):
    return load_file(ROOT / folder / "model.safetensors")


def same(a, b):
    """Whether two sets of weights are equal, bit for bit."""
    return all((a[name] == b[name]).all() for name in a)


def largest_difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def timeless(rows):
    """The metrics without those that a clock makes."""
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def wait_for_steps(process, out, count):
    deadline = time.monotonic() + 120
    while len(lines(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
