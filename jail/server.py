"""The fork server: it locks itself in, then forks once per run.

    trainer (sandbox.py)  --JSON message with descriptors-->  server  --fork-->  run (child.py)

The server is trusted and small. It runs no untrusted code before the fork, and never sees code,
input or output, which are in descriptors that it passes on. In order, it
  1. leaves the host (isolation.py);
  2. installs a seccomp allow-list (no sockets, no exec, no ptrace ...), which the runs inherit;
  3. forks per run. The run gets its limits, at level namespaces its own scratch directory in
     memory, and a second filter that takes away what only the server needs: new processes,
     signals, mounts, descriptor passing.
So one run is one process: SIGKILL is a sure kill, RLIMIT_AS and RLIMIT_CPU are exact. Threads are
counted: the kernel asks the server.

    python -S -s -P server.py CONTROL_DESCRIPTOR LEVEL PATH_OF_MAS      started by sandbox.py

Source: ours.

Test: `pytest tests/test_sandbox.py`. Read next: seccomp.py.
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import types
from dataclasses import dataclass

# Started with -P and -S, so that no directory of ours is on the path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jail import child  # noqa: E402
from jail.isolation import (  # noqa: E402
    LIBC,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    die_with_parent,
    drop_capabilities,
    landlock,
    must,
    namespaces,
)
from jail.seccomp import (  # noqa: E402
    NOTIFY_RECEIVE,
    NOTIFY_SEND,
    install,
    server_filter,
)
from jail.syscalls import NUMBERS  # noqa: E402

LIMITS = ("wall", "cpu", "memory", "output", "scratch", "files", "threads")
MAX_LIMIT = 1 << 50
MAX_WAIT = 60.0  # seconds of one poll
MAX_FRAMES = 100_000  # of recursion


@dataclass
class Run:
    pid: int
    pidfd: int
    started: float
    deadline: float | None  # None: its clock stands still
    threads_left: int
    why: str | None = None  # why the server ended it


class Server:
    """Forks, keeps the deadlines, reaps, reports.

    What it is sent is the trusted trainer's, yet nothing malformed stops it.
    """

    def __init__(self, control: socket.socket, listener: int | None, level: str, mas):
        self.control = control
        self.listener = listener  # where the kernel asks about threads
        self.level = level
        self.mas = mas
        self.runs: dict[int, Run] = {}
        self.number_of_pidfd: dict[int, int] = {}
        self.unsent: list[bytes] = []
        self.pid = os.getpid()
        # A third of os.fork's page faults: there is one thread, so no lock to repair.
        self.fork = ctypes.PyDLL(None).fork
        self.poll = select.poll()
        self.poll.register(control.fileno(), select.POLLIN)
        if listener is not None:
            self.poll.register(listener, select.POLLIN)

    def serve(self) -> None:
        while True:
            for fd, event in self.poll.poll(self.milliseconds_to_wait()):
                if fd == self.listener:
                    self.answer_thread()
                elif fd != self.control.fileno():
                    self.reap(self.number_of_pidfd.pop(fd))
                elif event & select.POLLHUP:
                    sys.exit(0)  # the trainer is gone; PDEATHSIG takes the runs along
                elif event & select.POLLIN:
                    self.receive()
                else:
                    self.report()
            now = time.monotonic()
            for number, run in self.runs.items():
                if run.deadline is not None and run.deadline <= now:
                    self.kill(number, "timeout")

    def milliseconds_to_wait(self) -> float | None:
        deadlines = [run.deadline for run in self.runs.values() if run.deadline is not None]
        if not deadlines:
            return None
        seconds = max(0, min(deadlines) - time.monotonic())
        return min(seconds, MAX_WAIT) * 1000 + 0.5

    def receive(self) -> None:
        data, fds, _, _ = socket.recv_fds(self.control, 4096, 8)
        malformed = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
        with contextlib.suppress(*malformed):
            self.obey(json.loads(data), fds)
        for fd in fds:
            os.close(fd)

    def obey(self, message: dict, fds: list[int]) -> None:
        operation, number = message["op"], message["id"]
        if operation == "run":
            if type(number) is int and number not in self.runs and 3 <= len(fds) <= 4:
                limits = {name: message["limits"][name] for name in LIMITS}
                if all(is_limit(value) for value in limits.values()):
                    self.start(number, message["kind"], limits, fds)
        elif number not in self.runs:
            return
        elif operation == "kill":
            self.kill(number, str(message["why"])[:40])
        elif operation == "clock":  # the time that is left; None stops the clock
            left = message["left"]
            deadline = None
            if left is not None:
                deadline = time.monotonic() + min(max(0.0, float(left)), 1e9)
            self.runs[number].deadline = deadline

    def start(self, number: int, kind: str, limits: dict, fds: list[int]) -> None:
        pid = self.fork()
        if pid == 0:
            try:
                child.enter_run(fds, limits, self.level, self.pid)
                child.run(kind, self.mas)
            finally:
                os._exit(child.NEVER_STARTED)  # never back into the server's loop
        if pid < 0:  # this run fails, the others and the server go on
            self.report({"id": number, "failed": "no process could be started"})
            return
        now = time.monotonic()
        run = Run(
            pid=pid,
            pidfd=os.pidfd_open(pid),
            started=now,
            deadline=now + limits["wall"],
            threads_left=limits["threads"],
        )
        self.runs[number] = run
        self.number_of_pidfd[run.pidfd] = number
        self.poll.register(run.pidfd, select.POLLIN)

    def answer_thread(self) -> None:
        """A run wants to start a thread: let it, or end the run if that is one too many."""
        with contextlib.suppress(FileNotFoundError):  # the run was killed while it asked
            notification = fcntl.ioctl(self.listener, NOTIFY_RECEIVE, bytes(80))
            request, tid = struct.unpack_from("QI", notification)
            for number, run in self.runs.items():
                if LIBC.syscall(NUMBERS["tgkill"], run.pid, tid, 0) != 0:
                    continue  # the thread belongs to another run
                run.threads_left -= 1
                if run.threads_left < 0:
                    self.kill(number, "processes")
                    return
            go_on = struct.pack("QqiI", request, 0, 0, 1)
            fcntl.ioctl(self.listener, NOTIFY_SEND, go_on)

    def kill(self, number: int, why: str) -> None:
        run = self.runs[number]
        run.why = run.why or why
        run.deadline = None
        os.kill(run.pid, signal.SIGKILL)

    def reap(self, number: int) -> None:
        run = self.runs.pop(number)
        self.poll.unregister(run.pidfd)
        os.close(run.pidfd)
        if self.level == "none":
            LIBC.killpg(run.pid, signal.SIGKILL)  # what it started, too
        _, status, usage = os.wait4(run.pid, 0)
        self.report(
            {
                "id": number,
                "exit": os.waitstatus_to_exitcode(status),
                "why": run.why,
                "seconds": time.monotonic() - run.started,
                "cpu": usage.ru_utime + usage.ru_stime,
            }
        )

    def report(self, *messages: dict) -> None:
        """Send what fits; a trainer that is busy must not hold up the deadlines."""
        self.unsent += [json.dumps(message).encode() for message in messages]
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.control.sendmsg([self.unsent[0]])
                del self.unsent[0]
        events = select.POLLIN | select.POLLOUT if self.unsent else select.POLLIN
        self.poll.modify(self.control, events)


def is_limit(value) -> bool:
    return type(value) in (int, float) and 0 <= value < MAX_LIMIT


def load_modules(path_of_mas: str) -> types.ModuleType:
    """Load what runs may use, before files are out of reach. Returns the module mas."""
    import builtins
    import decimal  # noqa: F401 - for the runs
    import fractions  # noqa: F401 - for the runs
    import random

    for name in child.PRELUDE:
        exec(f"import {name}\nfrom {name} import *", child.NAMES)
    child.NAMES.update(vars(builtins))
    mas = types.ModuleType("mas")
    with open(path_of_mas) as file:
        exec(compile(file.read(), "mas.py", "exec"), mas.__dict__)
    sys.modules["mas"] = mas  # so that a script may import it
    # Every run starts from the same state: scripts that draw are as reproducible as the rest.
    random.seed(0)
    # A billion frames would end as slow death by memory; this many end as RecursionError.
    set_limit = sys.setrecursionlimit
    sys.setrecursionlimit = lambda frames: set_limit(min(frames, MAX_FRAMES))
    sys.stdin.reconfigure(errors="replace")
    for name in [name for name in sys.modules if name.split(".")[0] == "jail"]:
        del sys.modules[name]  # nothing of this is for a run to import
    return mas


def main() -> None:
    control_fd, level, path_of_mas = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which closes this
    sys.path = [path for path in sys.path if path and path.startswith(sys.base_prefix)]
    mas = load_modules(path_of_mas)
    if level == "namespaces":
        namespaces(control_fd)
    control = socket.socket(fileno=control_fd)
    must(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if level == "landlock":
        drop_capabilities()
        landlock()
    # From here on no run can name what is open here, or in another run, under /proc: what it forks
    # has this flag from its first instruction.
    must(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")
    listener = None
    if level != "none":
        listener = install(server_filter(level), flags=8)
    control.sendmsg([b"ready"])
    control.setblocking(False)
    gc.freeze()
    Server(control, listener, level, mas).serve()


if __name__ == "__main__":
    main()
