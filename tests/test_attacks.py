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
# Attacks that are known to get through (docs/sandbox.md says how). Shared memory that outlives its
# mapping counts against no limit. At level landlock a run can read what is on its way to another.
OPEN_HOLES = ("shared_unmap", "neighbour_input")


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
    new_problems = [p for p in found["problems"] if not p.startswith(OPEN_HOLES)]
    assert new_problems == [] and found["level"] == level
    assert found["uid"] == (os.getuid() if user is None else user)
    assert found["ran"] >= (110 if SHARED.is_dir() else 40)
