"""Every attack, as root and as an unprivileged user, at both upper levels: contained, and nothing
is left behind."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from conftest import ROOT, SHARED

pytestmark = pytest.mark.alone

NOBODY = 65534
FILES = ("sandbox.py", "data_types.py", "mas.py", "tests/attacks.py", "tests/attack_harness.py")
FOLDERS = ("jail", "benchmarks", "lib")


@pytest.fixture(scope="module")
def place():
    """A copy that anybody may read, and an interpreter that anybody may run: the checkout and its
    environment need not be."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pytest-attacks-"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=no_caches)
    if SHARED.is_dir():
        shutil.copytree(SHARED / "attacks", folder / "shared")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder)


def command(place, user, *arguments):
    """Run Python as `user`. Skips where this process may not become that user, or that user finds
    no interpreter."""
    if user is not None and os.getuid() != 0:
        pytest.skip("only root can become another user; the tests of its own rights run anyway")
    home = str(place) if user else os.environ.get("HOME", "/")
    options = {"env": {"PATH": os.environ["PATH"], "HOME": home}, "capture_output": True}
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        new_enough = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
        try:
            probe = subprocess.run(new_enough, user=user, cwd="/", **options)
        except OSError:
            continue
        if probe.returncode == 0:
            return subprocess.run(
                [python, *arguments],
                user=user,
                group=user,
                extra_groups=[] if user else None,
                cwd=place,
                text=True,
                timeout=300,
                **options,
            )
    pytest.skip("no Python that user nobody may run")


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
@pytest.mark.parametrize("user", [None, NOBODY], ids=["me", "nobody"])
def test_every_attack_is_contained(place, user, level):
    shared = ["shared"] if SHARED.is_dir() else []
    process = command(place, user, "attack_harness.py", level, *shared)
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout)
    refused = found.get("refused", "")
    if any(word in refused for word in ("unshare", "uid_map", "mount", "Landlock")):
        pytest.skip(f"this kernel, or the container, has no {level} for this user: {refused}")
    assert found["problems"] == [] and found["level"] == level
    assert found["uid"] == (os.getuid() if user is None else user)
    assert found["ran"] >= (180 if SHARED.is_dir() else 100)


SPY = """
import os, time
end, me, server = time.monotonic() + 1.5, os.getpid(), os.getppid()
found = set()
while time.monotonic() < end:
    for process in (server, *range(me - 3, me + 40)):
        for number in range(12) if process != me else ():
            try:
                with open(f"/proc/{process}/fd/{number}", "rb") as file:
                    found.add(os.pread(file.fileno(), 1 << 12, 0)[-60:])
            except OSError:
                pass
print(sorted(found))
"""
NEIGHBOURS = f"""
import asyncio, sys
sys.path.insert(0, ".")
from sandbox import Limits, Sandbox

async def main():
    async with Sandbox(sys.argv[1]) as sandbox:
        limits = Limits(wall=5, cpu=5)
        spies = [asyncio.create_task(sandbox.run({SPY!r}, limits=limits)) for _ in range(2)]
        for number in range(200):
            await sandbox.run(f"secret = {{number}}, 'SECRET'", b"SECRET of a neighbour")
        print([(await spy).stdout for spy in spies])

asyncio.run(main())
"""


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
@pytest.mark.parametrize("user", [None, NOBODY], ids=["me", "nobody"])
def test_no_run_sees_its_neighbours(place, user, level):
    """Code and input of 200 other runs, while their descriptors pass through the server."""
    process = command(place, user, "-c", NEIGHBOURS, level)
    if process.returncode and ("unshare" in process.stderr or "Landlock" in process.stderr):
        pytest.skip(f"this kernel, or the container, has no {level} for this user")
    assert process.returncode == 0, process.stderr[-2000:]
    assert "SECRET" not in process.stdout and "\\n" in process.stdout, process.stdout
