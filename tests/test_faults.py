"""Faults of processes, disks and clocks: nothing is lost, and what goes on ends as if nothing had
happened.

FAULTS=50 pytest tests/test_faults.py     fifty kills instead of two, disks of every size, and what
                                          is skipped otherwise; an hour
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import ROOT, SMALL_RUN, lines
from runs import finish, same, start, timeless, train_run, wait_for_steps, weights

from lib import checkpoint

NUM_FAULTS = int(os.environ.get("FAULTS", 2))
IS_THOROUGH = NUM_FAULTS > 2
IS_SKIPPED = pytest.mark.skipif(not IS_THOROUGH, reason="takes long; FAULTS=50 tries it")


def thorough(test):
    """These look for processes, or stop one for a minute: nothing may run beside them."""
    return pytest.mark.alone(IS_SKIPPED(test))


STEPS = ("--steps", 8, "--save-every", 1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happens to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train_run(*STEPS, "--out", out)
    return out


def is_the_same_run(out, straight):
    """Weights, metrics and episodes, bit for bit; a clock's numbers are left out."""
    episodes = [(folder / "episodes.jsonl").read_text() for folder in (out, straight)]
    return (
        same(weights(out), weights(straight))
        and timeless(lines(out)) == timeless(lines(straight))
        and episodes[0] == episodes[1]
    )


def kill_at_random(command, seconds: float, rng) -> bool:
    """Start it, and kill -9 at a random moment of so many seconds: whether it was killed."""
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=rng.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, errors
    return False


def test_random_kills_of_a_training(straight, tmp_path):
    """kill -9 at random moments, each followed by --resume."""
    rng, out = random.Random(0), tmp_path / "run"

    def command():
        flags = [*SMALL_RUN, *STEPS]
        if (out / "config.json").exists():
            flags = ["--resume"]
        return [sys.executable, ROOT / "train.py", *flags, "--out", out]

    started = time.monotonic()
    kills = int(kill_at_random(command(), 0.1, rng))
    while kills < NUM_FAULTS:
        if not kill_at_random(command(), 15, rng):
            assert is_the_same_run(out, straight)
            shutil.rmtree(out)  # it came to its end: once more from the beginning
            continue
        kills += 1
    subprocess.run([str(word) for word in command()], check=True, capture_output=True)
    print(f"{kills} kills in {time.monotonic() - started:.0f} s")
    assert is_the_same_run(out, straight)


@thorough
def test_random_kills_of_a_collection(tmp_path):
    """The same for sft.py --collect, which goes on when it is called again."""
    rng = random.Random(1)
    complete, killed = tmp_path / "complete.jsonl", tmp_path / "killed.jsonl"

    def command(out):
        flags = ["--collect", "--engine", "hf", "--teacher", "tiny", "--questions", 40]
        return [sys.executable, ROOT / "sft.py", *flags, "--out", out]

    subprocess.run([str(word) for word in command(complete)], check=True, capture_output=True)
    expected = sorted(complete.read_text().splitlines())
    kills = 0
    while kills < NUM_FAULTS:
        if not kill_at_random(command(killed), 12, rng):
            assert sorted(killed.read_text().splitlines()) == expected
            killed.unlink()
            continue
        kills += 1
    if not killed.exists() or (tmp_path / "killed.jsonl.progress").exists():
        subprocess.run([str(word) for word in command(killed)], check=True, capture_output=True)
    assert sorted(killed.read_text().splitlines()) == expected


def jails() -> dict[int, int]:
    """Process id -> parent's, of the sandboxes' servers and of what runs in them."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"jail/server.py" in (folder / "cmdline").read_bytes():
                status = (folder / "status").read_text()
                found[int(folder.name)] = int(status.split("PPid:\t")[1].split()[0])
        except OSError:  # it ended just now
            pass
    return found


def busy_servers(trainer: int) -> set[int]:
    """The sandbox servers of a process in which something runs.

    At level namespaces a process of its own stands between a server and its runs.
    """
    parents = jails()
    servers = {pid for pid, parent in parents.items() if parent == trainer}
    below = Counter()
    for parent in parents.values():
        for server in {parent, parents.get(parent)} & servers:
            below[server] += 1
    return {server for server in servers if below[server] >= 2}


@thorough
def test_a_sandbox_that_is_killed_ten_times(tmp_path):
    """Its runs are infrastructure errors and left out; the training goes on with a new server. If
    all of a step's runs were in it, the training ends and says how to go on."""
    out = tmp_path / "run"
    flags = ("--steps", 30, "--out", out)
    process = start(*flags)
    wait_for_steps(process, out, 1)
    killed = set()
    while len(killed) < 10:
        if process.poll() is not None:
            _, errors = process.communicate()
            assert process.returncode == 2 and "--resume" in errors, errors
            process = start(*flags, "--resume", flags=())
        for pid in busy_servers(process.pid) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    finish(process)
    rows = lines(out)
    assert len(rows) == 30 and sum(row["infra_errors"] for row in rows) > 0
    assert all(sum(row["statuses"].values()) == 24 for row in rows)
    assert rows[-1]["infra_errors"] == 0 and "eval_accuracy" in rows[-1]


@thorough
def test_a_rank_that_sleeps(tmp_path, straight):
    """SIGSTOP of the trainer: the scripts' clocks go on, and what timed out meanwhile says so."""
    out = tmp_path / "run"
    process = start(*STEPS, "--out", out)
    wait_for_steps(process, out, 2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(60)
    process.send_signal(signal.SIGCONT)
    finish(process)
    rows, undisturbed = lines(out), lines(straight)
    assert len(rows) == len(undisturbed)
    statuses = [row["statuses"].get("timeout", 0) for row in rows]
    print("timeouts", statuses, is_the_same_run(out, straight))
    assert sum(statuses) > 0 or is_the_same_run(out, straight)


def test_no_wall_clock_decides(monkeypatch, tmp_path, straight):
    """The time of day jumps by days, to and fro."""
    rng, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + rng.uniform(-1e6, 1e6))
    train_run(*STEPS, "--out", tmp_path / "run")
    assert is_the_same_run(tmp_path / "run", straight)


FULL_DISK = """
set -e
mount -t tmpfs -o size="$1" tmpfs "$2"
if [ "$1" = 60m ]; then  # another one fills it while the run is on its way
    (until [ "$(cat "$2/run/metrics.jsonl" | wc -l)" -ge 2 ]; do sleep 0.1; done
    cat /dev/zero > "$2/filler") 2> /dev/null &
fi
status=0
"$3" "$4/train.py" $5 --out "$2/run" 2> "$6/errors" > /dev/null || status=$?
ls -A "$2/run" > "$6/names"
cp -r "$2/run" "$6/full"
wait
rm -f "$2/filler"
mount -o remount,size=1g "$2"
"$3" "$4/train.py" --resume --out "$2/run" > /dev/null 2> "$6/errors_after"
cp -r "$2/run" "$6/run"
exit $status
"""


@pytest.mark.parametrize("megabytes", [*range(1, 22), 60] if IS_THOROUGH else [14])
def test_a_disk_that_fills_up(straight, tmp_path, megabytes):
    """A disk of so many megabytes, or one that another program fills: one clear line, the last
    checkpoint stays, and when there is room the run goes on."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can make a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = " ".join(str(flag) for flag in (*SMALL_RUN, *STEPS))
    arguments = (f"{megabytes}m", disk, sys.executable, ROOT, flags, tmp_path)
    shell = ["unshare", "-m", "bash", "-c", FULL_DISK, "full-disk", *arguments]
    done = subprocess.run([str(word) for word in shell], capture_output=True, text=True)
    if "permission denied" in done.stderr.lower() or "not permitted" in done.stderr:
        pytest.skip("this container may not mount")
    errors = (tmp_path / "errors").read_text()
    print(megabytes, "MB:", errors)
    assert done.returncode == 2 and "Traceback" not in errors, errors + done.stderr
    kept = checkpoint.find(tmp_path / "full")
    if kept:
        assert checkpoint.read(kept)["step"] <= len(lines(tmp_path / "full"))
    assert is_the_same_run(tmp_path / "run", straight)
