"""Speed of the sandbox, beside plain subprocesses with the same limits.

    python -m experiments.bench.sandbox [LEVEL]

It prints, one line each:

    empty program     runs per second of a program that does nothing, with 1 and with 64 at the same
                      time, in the sandbox and as subprocesses; above 1 times, the sandbox is faster
    script            time of a script that asks an agent three times and gets its replies at once
    busy loop         how late a program dies that ignores all signals and runs into its limit
    256 scripts       time of 256 scripts at the same time, whose agents take 3 s: best is 3 s
    10,000 runs       memory, descriptors, processes and temporary files before and after: a number
                      that grew is a leak

Runs per second are medians of five rounds, in which the two kinds take turns. It asserts nothing:
on a shared machine only the ratios can be compared.
Test: by hand, the command above. Read next: grade.py.
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

from sandbox import COMMAND, Limits, Sandbox

ROUNDS = 5
MANY = 64  # runs at the same time
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
PAGE_KB = resource.getpagesize() // 1024

EMPTY = "pass"
SCRIPT_LIMITS = Limits(wall=60.0, scratch=0)  # wall: so long that a busy machine is no timeout
SCRIPT = "a = Agent('x', 'y')\nr = a(question)\nr = a(r)\nr = a(r)\nsubmit(r)"
DEAF = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
"""
DEAF_LIMITS = Limits(wall=0.5, cpu=60)


# ------------------------------------------------------------------------------------ what is timed


def run_subprocess(_=None) -> None:
    """An empty program with limits, but not locked in."""
    command = [sys.executable, "-I", "-S", "-c", EMPTY]
    subprocess.run(command, preexec_fn=set_limits)


def set_limits() -> None:
    """The limits of a sandboxed run."""
    limits = {
        resource.RLIMIT_CPU: 5,
        resource.RLIMIT_AS: 512 << 20,
        resource.RLIMIT_FSIZE: 16 << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


async def run_script(sandbox: Sandbox, agent_seconds: float = 0.0) -> None:
    """A script that asks three times. agent_seconds: what a reply takes."""
    session = await sandbox.talk(SCRIPT, {"question": "q"}, SCRIPT_LIMITS)
    num_replies = 0
    message = await session.receive()
    while message is not None and message["op"] == "ask":
        await asyncio.sleep(agent_seconds)
        num_replies += 1
        await session.send({"replies": [{"id": num_replies, "text": "42", "answer": "42"}]})
        message = await session.receive()
    session.kill()
    outcome = await session.finish()
    assert message is not None, f"the script ended early: {outcome}"


# ------------------------------------------------------------------------------------------- clocks


async def median_seconds(run, repeat: int) -> float:
    """Median time of a run, one after the other."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        await run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def runs_per_second(run, at_once: int, count: int) -> float:
    """The rate of `count` runs, of which `at_once` are in flight."""
    gate = asyncio.Semaphore(at_once)

    async def run_in_turn():
        async with gate:
            await run()

    started = time.perf_counter()
    await asyncio.gather(*[run_in_turn() for _ in range(count)])
    return count / (time.perf_counter() - started)


def median_subprocess_seconds(repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        run_subprocess()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def subprocesses_per_second(pool: concurrent.futures.Executor, count: int) -> float:
    started = time.perf_counter()
    list(pool.map(run_subprocess, range(count)))
    return count / (time.perf_counter() - started)


# ------------------------------------------------------------------------------------- measurements


async def measure_empty_program(sandbox: Sandbox) -> None:
    def run():
        return sandbox.run(EMPTY)

    sandbox_rates = {1: [], MANY: []}  # runs at the same time -> runs per second, of each round
    subprocess_rates = {1: [], MANY: []}
    await runs_per_second(run, MANY, 200)  # warms up: not counted
    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        for _ in range(ROUNDS):
            sandbox_rates[1].append(1 / await median_seconds(run, 60))
            subprocess_rates[1].append(1 / median_subprocess_seconds(40))
            sandbox_rates[MANY].append(await runs_per_second(run, MANY, 400))
            subprocess_rates[MANY].append(subprocesses_per_second(pool, 200))
    for at_once in (1, MANY):
        ours = statistics.median(sandbox_rates[at_once])
        plain = statistics.median(subprocess_rates[at_once])
        print(
            f"empty program, {at_once:2} in flight: {ours:6.0f} runs/s, plain subprocess with "
            f"limits {plain:5.0f} runs/s: {ours / plain:.1f} times"
        )


async def measure_script(sandbox: Sandbox) -> None:
    def run():
        return run_script(sandbox)

    seconds = await median_seconds(run, 100)
    rate = await runs_per_second(run, MANY, 400)
    print(
        f"script with three instant asks: {1e3 * seconds:.1f} ms; "
        f"{MANY} in flight: {rate:.0f} scripts/s"
    )


async def measure_busy_loop(sandbox: Sandbox) -> None:
    async def run_milliseconds_late() -> float:
        outcome = await sandbox.run(DEAF, limits=DEAF_LIMITS)
        return 1e3 * (outcome.seconds - DEAF_LIMITS.wall)

    alone = [await run_milliseconds_late() for _ in range(9)]
    together = await asyncio.gather(*[run_milliseconds_late() for _ in range(MANY)])
    print(
        f"busy loop deaf to signals: dead {statistics.median(alone):.0f} ms after its limit "
        f"(worst of 9: {max(alone):.0f}); of {MANY} the last after {max(together):.0f} ms"
    )


async def measure_waiting_scripts(sandbox: Sandbox) -> None:
    started = time.perf_counter()
    await asyncio.gather(*[run_script(sandbox, agent_seconds=1.0) for _ in range(256)])
    print(f"256 scripts of three waits of 1 s: {time.perf_counter() - started:.2f} s")


async def measure_leaks(sandbox: Sandbox) -> None:
    def run():
        return sandbox.run(EMPTY)

    await runs_per_second(run, MANY, 1000)  # warms up
    before = resources_in_use()
    rates = [await runs_per_second(run, MANY, 1000) for _ in range(10)]
    after = resources_in_use()
    changes = [f"{name} {before[name]} -> {after[name]}" for name in before]
    print(f"10,000 runs at {statistics.median(rates):.0f} runs/s: {', '.join(changes)}")


def resources_in_use() -> dict[str, int]:
    """What this process, the sandbox's server and its children hold."""
    server_pids = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_server = COMMAND[-1].encode() in path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if is_server:
            server_pids.append(path.parent.name)
    return {
        "this process KB": memory_kb("self"),
        "server KB": sum(memory_kb(pid) for pid in server_pids),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(server_pids),
        "temporary files": sum(len(os.listdir(folder)) for folder in TEMPORARY_FOLDERS),
    }


def memory_kb(pid: str) -> int:
    """Resident memory of a process."""
    resident_pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(resident_pages) * PAGE_KB


async def main(level: str = "auto") -> None:
    async with Sandbox(level) as sandbox:
        print(f"level {sandbox.level}")
        await measure_empty_program(sandbox)
        await measure_script(sandbox)
        await measure_busy_loop(sandbox)
        await measure_waiting_scripts(sandbox)
        await measure_leaks(sandbox)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
