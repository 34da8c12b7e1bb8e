"""Several ranks: two equal one, sharded weights equal DDP, a killed rank ends the job."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SMALL_RUN, lines
from runs import (
    finish,
    largest_difference,
    start,
    tiny_weights,
    train_run,
    wait_for_steps,
    weights,
)

from lib import checkpoint

TORCHRUN = ("-m", "torch.distributed.run")
TWO = (*TORCHRUN, "--standalone", "--nproc_per_node", "2")
# In fp64: in fp32 AdamW makes steps of full size of gradients that are rounding alone, and a few of
# 860,000 parameters then differ by 2e-5.
EXACT = ("--dtype", "float64", "--steps", 4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Four steps on two ranks of one node, with DDP: what the other ways to be two must equal."""
    out = tmp_path_factory.mktemp("two") / "run"
    train_run(*EXACT, "--out", out, launcher=TWO)
    return out


def tokens(out):
    return [row["tokens"] for row in lines(out)]


def test_two_ranks_equal_one(two, tmp_path):
    """The same questions on one rank and on two: after 4 steps, in which both roles were trained,
    parameters differ by less than 1e-6."""
    out = tmp_path / "one"
    train_run(*EXACT, "--out", out)
    assert largest_difference(weights(out), weights(two)) < 1e-6
    assert largest_difference(tiny_weights(), weights(two)) > 1e-4
    assert tokens(out) == tokens(two)


def test_two_policies_on_two_ranks_equal_those_on_one(tmp_path):
    for name, launcher in (("one", ()), ("two", TWO)):
        train_run(*EXACT, "--designer", "tiny", "--out", tmp_path / name, launcher=launcher)
    for folder in ("checkpoint", "checkpoint/designer"):
        one, two = weights(tmp_path / "one", folder), weights(tmp_path / "two", folder)
        assert largest_difference(one, two) < 1e-6
        assert largest_difference(one, tiny_weights()) > 1e-4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_nodes_equal_one(two, tmp_path):
    """Two torchrun agents on loopback, one rank each: the same as one node with two ranks."""
    out = tmp_path / "run"
    address = ("--master_addr", "127.0.0.1", "--master_port", free_port())
    nodes = []
    for rank in range(2):
        node = ("--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1)
        launcher = (*TORCHRUN, *node, *address)
        nodes.append(start(*EXACT, "--out", out, launcher=launcher))
    for node in nodes:
        finish(node)
    assert largest_difference(weights(out), weights(two)) < 1e-12
    assert tokens(out)[-1] == tokens(two)[-1]


def test_sharding_equals_ddp_also_after_a_resume(two, tmp_path):
    """--shard on two ranks: the same weights as DDP, also when it goes on from a checkpoint."""
    out = tmp_path / "run"
    train_run(*EXACT[:-1], 2, "--out", out, "--shard", launcher=TWO)
    train_run(*EXACT, "--out", out, "--resume", "--shard", launcher=TWO)
    assert largest_difference(weights(out), weights(two)) < 1e-12
    assert tokens(out) == tokens(two)


def ranks_of(launcher) -> dict:
    """RANK -> process id of the children of a torchrun."""
    ranks = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"PPid:\t{launcher.pid}\n" in (folder / "status").read_text():
                variables = (folder / "environ").read_text().split("\0")
                environment = dict(item.split("=", 1) for item in variables if "=" in item)
                ranks[environment["RANK"]] = int(folder.name)
        except (OSError, KeyError):  # it ended just now, or is no rank
            continue
    return ranks


@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_killed_rank_ends_the_job_and_it_can_go_on(tmp_path, victim):
    """kill -9 on one rank: the job ends within a minute, says what happened, and --resume goes on
    from the last checkpoint."""
    out = tmp_path / "run"
    process = start("--steps", 50, "--out", out, "--save-every", 1, launcher=TWO)
    wait_for_steps(process, out, 2)
    killed = time.monotonic()
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert f"rank      : {victim}" in stderr and "SIGKILL" in stderr
    done = checkpoint.read(checkpoint.find(out))["step"]
    assert done >= 1
    if victim == "0":
        return
    assert "--resume" in stdout + stderr
    train_run("--steps", done + 1, "--out", out, "--resume", launcher=TWO)
    assert lines(out)[-1]["step"] == done and "eval_accuracy" in lines(out)[-1]


BROKEN = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import train
from engines.hf import HFEngine
from lib import cli
from lib.errors import EngineError

async def sample(self, *arguments, **options):
    if self.tokens > 2000:
        self.broken = "the device is lost"
        raise EngineError(self.broken)
    return await healthy(self, *arguments, **options)

healthy = HFEngine.sample
if os.environ["RANK"] == "1":
    HFEngine.sample = sample
cli.command(train.main)
"""


def test_a_broken_engine_on_one_rank_ends_both(tmp_path):
    """They save and stop together, with one line; alone, one would wait for the other for hours."""
    script, out = tmp_path / "broken.py", tmp_path / "run"
    script.write_text(BROKEN)
    flags = (*SMALL_RUN, "--steps", "50", "--out", out)
    started = time.monotonic()
    command = [sys.executable, *TWO, script, ROOT, *flags]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=150
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "the device is lost" in line]
    assert len(said) == 1 and "steps are saved" in said[0] and "--resume" in said[0]
    assert checkpoint.read(out / "checkpoint")["step"] == len(lines(out))
    assert time.monotonic() - started < 120  # two starts of torch among them
