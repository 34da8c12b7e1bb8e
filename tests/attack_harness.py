"""Runs every attack at one level, as whoever starts it, and says what was not contained. Standard
library only.

    python attack_harness.py LEVEL [FOLDER OF ATTACK FILES]

It prints one JSON object: {"ran": n, "problems": [...], ...}. The harness itself finds out whether
an attack is contained; it doesn't rely on what the attack prints. Contained means:

- The attack ends within its limits, with a status that is right.
- No output holds anything secret, and nobody called at the listeners.
- No file, mode or time of the project, the home or the shared temporary folders changed.
- No process, mount or shared memory is left.
- This process still has its priority, affinity, limits and memory.
- A clean run right afterwards works.
"""

import asyncio
import json
import os
import pathlib
import re
import resource
import socket
import stat
import sys
import tempfile
import threading
import time

from attacks import ATTACKS

from benchmarks.code_grading import call
from lib.errors import ProtocolError, SandboxError
from sandbox import Limits, Sandbox

CANARY = "TRUTH" + "CANARY"
LIMITS = Limits(wall=1.0, cpu=1.0, memory=256 << 20, messages=50)
# The names of another protocol, as some of the files use them
SHIM = """import mas as _m
_a = _m.Agent('a', 'b')
_m.ask = lambda name, text: _a(text)
_submit = _m.submit
_m.submit = lambda text: _submit(_a(text))
"""


def read(folder):
    """name -> (mode, statuses, code) of a folder of attack files."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.py")):
        code = path.read_text(errors="surrogateescape")
        mode = re.search(r"# mode: (\w+)", code)[1]
        found[path.stem] = (
            mode,
            re.search(r"# expect: (\S+)", code)[1],
            (SHIM if mode == "mas" and "mas." in code else "") + code,
        )
    return found


def snapshot(*folders):
    """Everything that must be the same afterwards."""
    files = {}
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            files[str(path)] = (info.st_mode, info.st_mtime_ns, info.st_nlink, content)
    shared = {
        folder: sorted(
            name
            for name in os.listdir(folder)
            if "pytest" not in name and not name.startswith("pip-")
        )
        for folder in ("/tmp", "/var/tmp", "/dev/shm")
    }
    memory = pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    me = (
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)),
        resource.getrlimit(resource.RLIMIT_AS),
        resource.getrlimit(resource.RLIMIT_CPU),
    )
    return {
        "files": files,
        "shared folders": shared,
        "mounts": pathlib.Path("/proc/self/mounts").read_text(),
        "shared memory": memory,
        "own process": me,
    }


def jails():
    """The processes of sandboxes."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"jail/server.py" in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            pass
    return found


def listen(home):
    """Listeners that nobody may reach. Returns (port, hits)."""
    hits, tcp, udp = [], socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp.bind(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp.bind(("127.0.0.1", port))
    sockets = [tcp, udp]
    for address in ("\0sbx_abs", str(home / "sock")):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(address)

    def wait(one):
        hits.append(one.recv(1) if one is udp else one.accept())

    for one in sockets:
        if one is not udp:
            one.listen()
        threading.Thread(target=wait, args=(one,), daemon=True).start()
    return port, hits


async def talk(sandbox, code):
    """A script that talks with an instant fake agent. Returns (status, output)."""
    session = await sandbox.talk(code, {"question": "q"}, LIMITS)
    submitted, said = False, []
    try:
        while (message := await session.receive()) is not None:
            asks = message.get("asks")
            if message.get("op") == "submit" and message.get("reply") in range(len(said)):
                submitted = True
                break
            if message.get("op") != "ask" or not isinstance(asks, list) or not asks:
                session.kill("protocol")
                break
            said += asks
            await session.send(
                {"replies": [{"id": len(said) - 1, "text": "said", "answer": None}] * len(asks)}
            )
    except ProtocolError:
        pass
    if submitted:
        session.kill()
    outcome = await session.finish()
    return outcome, "ok" if submitted else outcome.status


async def attack(sandbox, mode, code):
    if mode == "mas":
        return await talk(sandbox, code)
    if mode == "call":
        arguments = re.search(r"# args: (.+)", code)
        outcome, results = await call(
            sandbox, code, "f", json.loads(arguments[1]) if arguments else [[]], LIMITS
        )
        if len(json.dumps(results)) > 8 << 20:
            return outcome, "too large a result"
        return outcome, outcome.status
    outcome = await sandbox.run(code, limits=LIMITS)
    return outcome, outcome.status


async def main(level, folders):
    os.environ["API_TOKEN"] = CANARY
    attacks = {
        **ATTACKS,
        **{name: found for folder in folders for name, found in read(folder).items()},
    }
    problems, statuses, late = [], {}, 0.0
    others = jails()
    with tempfile.TemporaryDirectory() as folder:
        project, home = pathlib.Path(folder, "project"), pathlib.Path(folder, "home")
        for path in (project, home):
            path.mkdir()
        (project / "keep.txt").write_text("keep")
        (home / ".bashrc").write_text(CANARY)
        (project / "truth.json").write_text(CANARY)
        port, hits = listen(home)
        filled = {
            "@PPID@": str(os.getpid()),
            "@PROJ@": str(project),
            "@HOME@": str(home),
            "@TRUTH@": str(project / "truth.json"),
            "@PORT@": str(port),
        }
        before = snapshot(project, home)
        async with Sandbox(level) as sandbox:
            await asyncio.gather(*(sandbox.run("pass") for _ in range(20)))
            memory, gate = resident(), asyncio.Semaphore(3)

            async def one(name):
                nonlocal late
                mode, expected, code = attacks[name]
                for mark, value in filled.items():
                    code = code.replace(mark, value)
                async with gate:
                    outcome, status = await asyncio.wait_for(attack(sandbox, mode, code), 30)
                    clean = await sandbox.run("print('clean')")
                said = outcome.stdout + outcome.stderr + outcome.results.decode(errors="replace")
                statuses[name], late = status, max(late, outcome.seconds - LIMITS.wall)
                if expected != "any" and status not in expected.split("|"):
                    problems.append(f"{name}: {status}, not {expected}: {said[-300:]}")
                if CANARY in said or "ESCAPE" in outcome.stdout:
                    problems.append(f"{name}: {said[-500:]}")
                if clean.stdout != "clean\n":
                    problems.append(f"{name}: the run after it: {clean}")

            await asyncio.gather(*(one(name) for name in attacks))
            if sandbox.runs:
                problems.append(f"runs in flight: {list(sandbox.runs)}")
            grown = resident() - memory
        for _ in range(100):
            if not jails() - others:
                break
            time.sleep(0.02)
        after = snapshot(project, home)
    problems += [
        f"{what} changed: {difference(before[what], after[what])}"
        for what in before
        if before[what] != after[what]
    ]
    problems += [f"processes left: {jails() - others}"] * bool(jails() - others) + [
        f"listeners reached: {hits}"
    ] * bool(hits)
    problems += [f"this process grew by {grown >> 20} MB"] * (grown > 64 << 20) + [
        f"{late:.1f} s over the limit"
    ] * (late > 1)
    print(
        json.dumps(
            {
                "level": sandbox.level,
                "uid": os.getuid(),
                "ran": len(attacks),
                "problems": problems,
                "late": round(late, 3),
                "grown": grown,
                "statuses": statuses,
            }
        )
    )


def difference(before, after):
    if isinstance(before, dict):
        return {
            key: difference(before.get(key), after.get(key))
            for key in {**before, **after}
            if before.get(key) != after.get(key)
        }
    if isinstance(before, list) and isinstance(after, list):
        return f"gone {sorted(set(before) - set(after))}, new {sorted(set(after) - set(before))}"
    return str(before)[-300:], str(after)[-300:]


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2:]))
    except SandboxError as error:
        print(json.dumps({"refused": str(error)}))
