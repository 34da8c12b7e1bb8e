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

NOBODY = 65534
FILES = (
    "sandbox.py",
    "jail/server.py",
    "mas.py",
    "programs.py",
    "tests/attacks.py",
    "tests/attack_harness.py",
)


@pytest.fixture(scope="module")
def place():
    """A copy that anybody may read, and an interpreter that anybody may run: the checkout and its
    environment need not be."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pytest-attacks-"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
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
        pytest.skip(
            "only root can become another user; the tests of this user's own rights run anyway"
        )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place) if user else os.environ.get("HOME", "/"),
    }
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            probe = subprocess.run(
                [python, "-c", "import sys; assert sys.version_info >= (3, 11)"],
                user=user,
                cwd="/",
                env=environment,
                capture_output=True,
            )
        except OSError:
            continue
        if probe.returncode == 0:
            return subprocess.run(
                [python, *arguments],
                user=user,
                group=user,
                extra_groups=[] if user else None,
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
    pytest.skip("no Python that user nobody may run")


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
@pytest.mark.parametrize("user", [None, NOBODY], ids=["me", "nobody"])
def test_every_attack_is_contained(place, user, level):
    process = command(
        place, user, "attack_harness.py", level, *(["shared"] if SHARED.is_dir() else [])
    )
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout)
    if any(
        word in found.get("refused", "") for word in ("unshare", "uid_map", "mount", "Landlock")
    ):
        pytest.skip(
            f"this kernel, or the container, has no {level} for this user: {found['refused']}"
        )
    assert (
        found["problems"] == []
        and found["level"] == level
        and found["uid"] == (os.getuid() if user is None else user)
    )
    assert found["ran"] >= (110 if SHARED.is_dir() else 40)
