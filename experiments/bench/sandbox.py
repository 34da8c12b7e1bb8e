"""Speed of the sandbox beside a plain subprocess with the same limits; medians, all from one run.
`python tests/bench_sandbox.py [LEVEL]`

Prints one line a measurement. Asserts nothing: a shared machine is no judge. The ratios are what to compare.
"""

import asyncio
import concurrent.futures
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from sandbox import Limits, Sandbox  # noqa: E402

SCRIPT = "a = Agent('x', 'y')\nr = a(question)\nr = a(r)\nr = a(r)\nsubmit(r)"
DEAF = "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"


def same_limits():
    for name, value in (
        ("CPU", 5),
        ("AS", 512 << 20),
        ("FSIZE", 16 << 20),
        ("NOFILE", 64),
        ("CORE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def plain(_=None):
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], preexec_fn=same_limits)


async def script(sandbox, wait=0.0):
    session, asked = await sandbox.talk(SCRIPT, {"question": "q"}, Limits(scratch=0)), 0
    while (message := await session.receive())["op"] == "ask":
        await asyncio.sleep(wait)
        await session.send(
            {"replies": [{"id": (asked := asked + 1), "text": "42", "answer": "42"}]}
        )
    session.kill()
    return await session.finish()


async def timed(function, repeat):
    """Median seconds of one after the other."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def rate(function, at_once, count):
    """Runs per second with `at_once` in flight."""
    gate = asyncio.Semaphore(at_once)

    async def one():
        async with gate:
            await function()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - started)


def state(sandbox):
    """Memory of this process and the server's tree, descriptors, processes, names in the shared
    temporary folders."""
    pids = [
        path.parent.name
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if path.exists() and b"jail/server.py" in path.read_bytes()
    ]
    size = [
        int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4
        for pid in ("self", *pids)
    ]
    names = sum(len(os.listdir(folder)) for folder in ("/tmp", "/var/tmp", "/dev/shm"))
    return {
        "this process KB": size[0],
        "server KB": sum(size[1:]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(pids),
        "temporary files": names,
    }


async def main(level):
    async with Sandbox(level) as sandbox:

        def empty():
            return sandbox.run("pass")

        print(
            f"level {sandbox.level}; every ratio is of medians of 5 rounds, the two kinds in turn"
        )
        await rate(empty, 64, 200)
        rounds = {"sandbox, 1": [], "subprocess, 1": [], "sandbox, 64": [], "subprocess, 64": []}
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            for _ in range(5):
                rounds["sandbox, 1"].append(1 / await timed(empty, 60))
                rounds["subprocess, 1"].append(
                    1
                    / statistics.median(
                        [-time.perf_counter() + (plain() or time.perf_counter()) for _ in range(40)]
                    )
                )
                rounds["sandbox, 64"].append(await rate(empty, 64, 400))
                started = time.perf_counter()
                list(pool.map(plain, range(200)))
                rounds["subprocess, 64"].append(200 / (time.perf_counter() - started))
        median = {name: statistics.median(values) for name, values in rounds.items()}
        for at_once in (1, 64):
            ours, theirs = median[f"sandbox, {at_once}"], median[f"subprocess, {at_once}"]
            print(
                f"empty program, {at_once:2} in flight: {ours:6.0f} runs/s, plain subprocess with limits {theirs:5.0f} runs/s: {ours / theirs:.1f} times"
            )
        print(
            f"script with three instant asks: {1e3 * await timed(lambda: script(sandbox), 100):.1f} ms; 64 in flight: {await rate(lambda: script(sandbox), 64, 400):.0f} scripts/s"
        )
        limits = Limits(wall=0.5, cpu=60)
        late = [(await sandbox.run(DEAF, limits=limits)).seconds - 0.5 for _ in range(9)]
        crowd = await asyncio.gather(*(sandbox.run(DEAF, limits=limits) for _ in range(64)))
        print(
            f"busy loop deaf to signals: dead {1e3 * statistics.median(late):.0f} ms after its limit (worst of 9: {1e3 * max(late):.0f}); "
            f"of 64 the last after {1e3 * max(outcome.seconds - 0.5 for outcome in crowd):.0f} ms"
        )
        started = time.perf_counter()
        await asyncio.gather(*(script(sandbox, 1.0) for _ in range(256)))
        print(f"256 scripts of three waits of 1 s: {time.perf_counter() - started:.2f} s")
        await rate(empty, 64, 1000)
        before = state(sandbox)
        speed = statistics.median([await rate(empty, 64, 1000) for _ in range(10)])
        print(
            f"10,000 runs at {speed:.0f} runs/s: "
            + ", ".join(
                f"{name} {before[name]} -> {value}" for name, value in state(sandbox).items()
            )
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["auto"]))
