"""The sandbox: untrusted Python in a locked process. Run a program, or talk with a script.

    async with Sandbox() as sandbox:
        outcome = await sandbox.run("print(6 * 7)")  # Outcome("ok", stdout="42\\n", ...)
        session = await sandbox.talk(script, {"question": "..."})
        message = await session.receive()
        await session.send({"replies": []})

A Sandbox starts one fork server (jail/), which locks itself in and forks once per run. This file is
the trainer's half. Code and input travel in sealed memory files; output lands in memory files of a
fixed size, so that a flood ends the run and never fills the trainer's memory. Every message of a
script is checked: type, size, depth, number. The level is the best that passes a self-test on this
machine:

| | namespaces | landlock | none |
|---|---|---|---|
| can read | the interpreter; no other file exists | the interpreter | what this user may |
| can write | its scratch directory, in memory | nothing | what this user may |
| network, new processes, exec, signals to others | no | no | yes |
| wall, CPU, memory, output, files, threads | limited | limited | limited, but for threads |
| is chosen | first | where namespaces fail | only by name |

Not covered: bugs of the kernel, side channels. Linux on x86-64, and on aarch64, where nobody has
run it yet.

    python sandbox.py FILE.py      run one file and print its outcome as JSON
    python sandbox.py --check      which level works here, and why not a better one

Test: `pytest tests/test_sandbox.py tests/test_attacks.py`. Read next: tasks.py.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

from jail.child import EXIT_CODES
from jail.isolation import readable_paths
from jail.syscalls import ARCHITECTURES
from lib.errors import ProtocolError, SandboxError, UserError
from lib.turns import my_turn

ROOT = pathlib.Path(__file__).resolve().parent
PROTECTED_LEVELS = ("namespaces", "landlock")
LEVELS = (*PROTECTED_LEVELS, "none")
MAX_MESSAGE_BYTES = 1 << 20
MAX_DEPTH = 8  # levels of nesting in a message
MAX_PARTS = 50_000  # lists and objects in a message
RESULT_BYTES = 4 << 20  # what a driver may write
# Nothing of the trainer's environment reaches a run.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "PATH": "/usr/bin:/bin",
    "MALLOC_ARENA_MAX": "1",
}
# -S -s -P: no site packages, no user's, and no working directory on the path.
COMMAND = [sys.executable, "-S", "-s", "-P", str(ROOT / "jail" / "server.py")]


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds, bytes, numbers."""

    wall: float = 5.0  # the run's own time: the clock stands still while an agent answers
    cpu: float = 5.0
    memory: int = 512 << 20  # address space; scratch and output come on top
    output: int = 64 << 10  # each of stdout and stderr
    scratch: int = 16 << 20  # the scratch directory (level namespaces); 0: none
    files: int = 1000  # in the scratch directory
    threads: int = 64  # started over the run's life
    messages: int = 1000  # of a script that talks

    def __post_init__(self):
        wrong = [name for name, value in asdict(self).items() if not 0 <= value < 1 << 50]
        if wrong:
            raise ValueError(f"limits have to be finite numbers from 0: {', '.join(wrong)}")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    status: ok, error (it raised), invalid (does not compile), crash (a signal), timeout (wall),
    cpu, memory, output, files (size or number), processes (or threads), protocol (not a message),
    messages (too many), killed (by the caller).
    """

    status: str
    stdout: str
    stderr: str
    seconds: float
    level: str
    cpu: float = 0.0  # seconds
    results: bytes = b""  # what a driver wrote


class Session:
    """One run. A script that talks has a `line`, a socket with one JSON message a line.

    The form of messages is checked here, their content by the caller.
    """

    def __init__(self, sandbox: "Sandbox", number: int, limits: Limits, outputs: list[int]):
        self.sandbox = sandbox
        self.number = number
        self.limits = limits
        self.outputs = outputs  # descriptors of the memory files that the run writes to
        self.line: socket.socket | None = None
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()  # received, not yet a complete line
        self.num_messages = 0
        self.seconds_left = limits.wall
        self.running_since: float | None = self.loop.time()
        self.ended = self.loop.create_future()  # the server's report
        # Where nobody waits for the report any more, an error in it is no event.
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def receive(self) -> dict | None:
        """The script's next message; None when it has ended. Raises ProtocolError.

        The script's clock runs until then, and from the next call on.
        """
        self.start_clock()
        line = await self.read_line()
        if line is None:
            return None
        self.stop_clock()
        self.num_messages += 1
        if self.num_messages > self.limits.messages:
            self.refuse("messages", f"more than {self.limits.messages} messages")
        await my_turn()  # many messages may arrive at once
        try:
            return parse_message(line)
        except ProtocolError as error:
            self.refuse("protocol", str(error))

    async def read_line(self) -> bytes | None:
        searched = 0
        while (end := self.buffer.find(b"\n", searched)) < 0:
            searched = len(self.buffer)
            if searched > MAX_MESSAGE_BYTES:
                break
            with contextlib.suppress(ConnectionResetError):
                self.buffer += await self.loop.sock_recv(self.line, 1 << 16)
            if len(self.buffer) == searched:
                return None
        if not 0 <= end <= MAX_MESSAGE_BYTES:
            self.refuse("protocol", f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line

    def refuse(self, why: str, text: str) -> None:
        """End the run for what it sent, and raise ProtocolError."""
        self.kill(why)
        raise ProtocolError(text) from None

    async def send(self, message: dict) -> None:
        """Answer the script; its clock runs again. If it has died, the next receive says so."""
        self.start_clock()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self.loop.sock_sendall(self.line, json.dumps(message).encode() + b"\n")

    def start_clock(self) -> None:
        if self.running_since is None:
            self.running_since = self.loop.time()
            self.post("clock", left=self.seconds_left)

    def stop_clock(self) -> None:
        used = self.loop.time() - self.running_since
        self.seconds_left = max(0.001, self.seconds_left - used)
        self.running_since = None
        self.post("clock", left=None)

    def kill(self, why: str = "killed") -> None:
        """End the run; the first reason stays."""
        self.post("kill", why=why)

    def post(self, operation: str, fds=(), **rest) -> None:
        self.sandbox.post({"op": operation, "id": self.number, **rest}, fds)

    def abandon(self) -> None:
        """End the run if it goes on (whoever waits was cancelled), and close what it holds."""
        if not self.ended.done():
            self.kill()
        while self.outputs:
            os.close(self.outputs.pop())
        if self.line:
            self.line.close()

    async def finish(self) -> Outcome:
        """Wait for the end; everything that the run started is dead by then.

        Raises SandboxError if the server died.
        """
        self.start_clock()
        try:
            report = await asyncio.shield(self.ended)  # a cancelled waiter must not end the run
            sizes = (self.limits.output, self.limits.output, RESULT_BYTES)
            written = [read_output(fd, size) for fd, size in zip(self.outputs, sizes)]
        finally:
            self.abandon()
        (stdout, _), (stderr, _), *results = written
        any_full = any(is_full for _, is_full in written)
        return Outcome(
            status=outcome_status(report, self.limits, any_full),
            stdout=stdout.decode("utf-8", "replace"),
            stderr=stderr.decode("utf-8", "replace"),
            seconds=round(report["seconds"], 4),
            level=self.sandbox.level,
            cpu=round(report["cpu"], 4),
            results=results[0][0] if results else b"",
        )


def outcome_status(report: dict, limits: Limits, output_full: bool) -> str:
    """How a run ended, from the server's report."""
    if report["why"]:  # the server ended it: timeout, processes, protocol, killed ...
        return report["why"]
    name_of = {code: name for name, code in EXIT_CODES.items()}
    status = name_of.get(report["exit"], "crash")
    if status not in ("ok", "error", "crash"):  # memory, files, processes, invalid
        return status

    # The kernel kills at the CPU limit. It counts ticks for that, which on a busy machine come well
    # before the exact time that it reports.
    was_killed = report["exit"] in (-signal.SIGKILL, -signal.SIGXCPU)
    cpu_limit = 0.5 * limits.cpu if was_killed else limits.cpu
    if report["cpu"] > cpu_limit:
        return "cpu"
    if output_full:
        return "output"
    return status


class Sandbox:
    """The fork server of this process, and the runs in it. Use it in one event loop.

    level: "auto" takes the better of namespaces and landlock that passes the self-test; a name
    takes that level or raises SandboxError. Then `level` is what was chosen, and `why_not` says of
    each better level why it was not.
    """

    def __init__(self, level: str = "auto"):
        self.wanted = level
        self.level = level
        self.why_not: dict[str, str] = {}
        self.server: subprocess.Popen | None = None
        self.control: socket.socket | None = None  # to the server
        self.runs: dict[int, Session] = {}
        self.num_runs = 0
        self.unsent: list[tuple[bytes, list[int]]] = []  # messages to the server, descriptors
        self.closed = False

    async def __aenter__(self) -> "Sandbox":
        if self.wanted not in ("auto", *LEVELS):
            levels = ", ".join(LEVELS)
            raise SandboxError(f"unknown sandbox level {self.wanted!r}: one of auto, {levels}")
        # A run in flight holds up to seven descriptors here.
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        levels = PROTECTED_LEVELS if self.wanted == "auto" else (self.wanted,)
        for level in levels:
            self.level = level
            try:
                await self.start()
                if self.level in PROTECTED_LEVELS:
                    await self.self_test()
                return self
            except SandboxError as error:
                self.stop("the self-test failed")
                self.why_not[self.level] = str(error)
            except asyncio.CancelledError:
                self.stop("the self-test failed")
                raise
        reasons = [
            f"sandbox level {level} does not work here: {why}"
            for level, why in self.why_not.items()
        ]
        raise SandboxError("; ".join(reasons))

    async def __aexit__(self, *_) -> None:
        self.closed = True
        self.stop("the sandbox was closed")

    # ------------------------------------------------------------------------------------- running

    async def run(
        self,
        code: str,
        stdin: bytes = b"",
        limits: Limits = Limits(),
        driver: str = "",
        setup: str = "",
        kind: str = "program",
    ) -> Outcome:
        """Run `code` and return how it ended. Raises SandboxError if the sandbox itself failed.

        Args:
            setup: trusted code that runs before it, in the same scope.
            driver: trusted code that runs after it, in a scope of its own, with the code's names as
                `scope`; what it writes to descriptor 3 are the results.
            kind: "candidate" finds the names of jail.child.PRELUDE without importing them.
        """
        session = await self.launch(kind, (setup, code, driver), stdin, limits)
        return await session.finish()

    async def talk(
        self,
        script: str,
        variables: dict | None = None,
        limits: Limits = Limits(),
        kind: str = "mas",
        driver: str = "",
        setup: str = "",
    ) -> Session:
        """Start a script that talks. Raises SandboxError.

        kind: "mas" sees `variables` and the names of mas.py; "line", a candidate program, only
        mas._request.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SandboxError(f"no descriptors for another run ({error.strerror})") from None
        with theirs:
            session = await self.launch(kind, (setup, script, driver), b"", limits, theirs)
        ours.setblocking(False)
        session.line = ours
        try:
            # It says "start" when it is about to run: then it gets its variables and its time.
            if await session.receive() is None:
                await session.finish()
                raise SandboxError("the run ended before its script began")
            session.seconds_left = limits.wall
            session.num_messages = 0
            await session.send(variables or {})
            return session
        except asyncio.CancelledError:
            session.abandon()
            raise

    async def launch(self, kind, texts, stdin: bytes, limits: Limits, line=None) -> Session:
        """Send one run to the server. texts: setup, code, driver."""
        await my_turn()  # a rollout starts hundreds at once
        if self.closed:
            raise SandboxError("the sandbox was closed")
        if self.control is None:
            await self.start()  # the server died: its runs are lost, the next ones are not
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        content = b"".join(b"%16d" % len(text) + text for text in encoded) + stdin
        sizes = [limits.output, limits.output]
        if texts[2] and not line:
            sizes.append(RESULT_BYTES)
        outputs, theirs = [], []
        try:
            theirs.append(memory_file(content))
            for size in sizes:
                outputs.append(memory_file(size=size))
                theirs.append(os.dup(outputs[-1]))
            if line:
                theirs.append(os.dup(line.fileno()))
        except OSError as error:
            for fd in outputs + theirs:
                os.close(fd)
            raise SandboxError(
                f"no descriptors or memory for another run ({error.strerror})"
            ) from None
        self.num_runs += 1
        session = Session(self, self.num_runs, limits, outputs)
        self.runs[session.number] = session
        session.post("run", kind=kind, limits=asdict(limits), fds=theirs)
        return session

    # ---------------------------------------------------------------------------------- the server

    async def start(self) -> None:
        """Start the fork server at self.level. Raises SandboxError."""
        machine = platform.machine()
        is_known = sys.platform == "linux" and machine in ARCHITECTURES
        if not is_known and self.level != "none":
            raise SandboxError(
                f"level {self.level} needs Linux on {' or '.join(ARCHITECTURES)}, and this is "
                f"{sys.platform} on {machine}"
            )
        if self.level in PROTECTED_LEVELS:
            check_nothing_is_exposed()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self.server = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno()), self.level, str(ROOT / "mas.py")],
                    env=ENVIRONMENT,
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
        except OSError as error:
            raise SandboxError(f"no process for the sandbox ({error.strerror})") from None
        self.control = ours
        ours.settimeout(20)
        ready, reason = b"", "the server did not start"
        with self.server.stderr, contextlib.suppress(TimeoutError):
            ready = ours.recv(4096)
            if not ready:
                errors = self.server.stderr.read().decode(errors="replace").strip().splitlines()
                reason = errors[-1] if errors else reason
        if not ready:
            self.stop(reason)
            raise SandboxError(reason)
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours.fileno(), self.read_reports)

    async def self_test(self) -> None:
        """One run that tries what must not work, and a thread, which must. Raises SandboxError."""
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "secret").write_text("secret")
            new_files = [
                os.path.join(place, f".sandbox-self-test-{os.getpid()}")
                for place in (folder, os.path.expanduser("~"), str(ROOT))
            ]
            stdin = json.dumps({"secret": folder + "/secret", "new_files": new_files}).encode()
            outcome = await self.run(PROBE, stdin, Limits(wall=10))
            if outcome.stdout.split() != ["thread"] or os.listdir(folder) != ["secret"]:
                for file in new_files:
                    pathlib.Path(file).unlink(missing_ok=True)
                problem = outcome.stdout or outcome.stderr[-100:] or outcome.status
                raise SandboxError("the self-test failed: " + " ".join(problem.split()))

    def stop(self, why: str) -> None:
        """Kill the server and everything in it; whoever waits for a run gets a SandboxError."""
        control, self.control = self.control, None
        if control is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(control.fileno())
            loop.remove_writer(control.fileno())
            # Its runs follow: PDEATHSIG, and at level namespaces the end of their process 1.
            self.server.kill()
            self.server.wait()
            control.settimeout(5)
            with control, contextlib.suppress(OSError):
                while control.recv(4096):  # until nobody holds the other end
                    pass
        for _, fds in self.unsent:
            for fd in fds:
                os.close(fd)
        self.unsent.clear()
        for session in self.runs.values():
            if not session.ended.done():
                session.ended.set_exception(SandboxError(why))
        self.runs.clear()

    def read_reports(self) -> None:
        """The server's reports of runs that have ended."""
        while self.control is not None:
            try:
                data = self.control.recv(4096)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.stop("the sandbox's server died")
                return
            report = json.loads(data)
            session = self.runs.pop(report["id"], None)
            if session is None or session.ended.done():
                continue
            if "failed" in report:
                session.ended.set_exception(SandboxError(report["failed"]))
            else:
                session.ended.set_result(report)

    def post(self, message: dict, fds=()) -> None:
        """Send one control message. A full socket is not a dead server: the rest waits its turn."""
        self.unsent.append((json.dumps(message).encode(), fds))
        self.flush()

    def flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self.unsent and self.control is not None:
            data, fds = self.unsent[0]
            try:
                socket.send_fds(self.control, [data], fds)
            except BlockingIOError:
                loop.add_writer(self.control.fileno(), self.flush)
                return
            except OSError as error:
                # As many descriptors are on their way as one user may have: wait a little. Anything
                # else is the end, which read_reports sees.
                if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                    loop.call_later(0.01, self.flush)
                return
            for fd in fds:
                os.close(fd)
            self.unsent.pop(0)
        if self.control is not None:
            loop.remove_writer(self.control.fileno())


def check_nothing_is_exposed() -> None:
    """Raises SandboxError if a folder of the user's lies inside what the interpreter needs."""
    user_folders = {ROOT, pathlib.Path.cwd(), pathlib.Path.home()}
    user_folders.add(pathlib.Path(tempfile.gettempdir()))
    for folder in user_folders:
        for path in readable_paths():
            if folder.resolve().is_relative_to(os.path.realpath(path)):
                raise SandboxError(
                    f"{folder} would be readable: it is inside of {path}, "
                    "which the interpreter needs"
                )


def parse_message(line: bytes) -> dict:
    """One message of a script: a JSON object. Raises ProtocolError on anything else.

    >>> parse_message(b'{"op": "submit", "reply": 3}')
    {'op': 'submit', 'reply': 3}
    """

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        if line.count(b"[") + line.count(b"{") > MAX_PARTS:
            raise ValueError("too many parts")
        message = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {str(error)[:100]}") from None
    if not isinstance(message, dict) or depth_exceeds(message, MAX_DEPTH):
        raise ProtocolError(f"a message is a JSON object of at most {MAX_DEPTH} levels")
    return message


def depth_exceeds(message, max_depth: int) -> bool:
    """Whether something lies below so many levels of lists and objects. Level by level."""
    level = [message]
    for _ in range(max_depth):
        below = []
        for value in level:
            kind = type(value)
            if kind is list:
                below += value
            elif kind is dict:
                below += value.values()
        level = below
    return bool(level)


def memory_file(content: bytes = b"", size: int = 0) -> int:
    """A sealed memory file: with `content`, at its start, or of a fixed `size` for output."""
    fd = os.memfd_create("run", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    pages = -(-size // 4096)  # whole pages: a write into a part of one is refused whole
    os.ftruncate(fd, pages * 4096 or len(content))
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    if not size:
        seals |= fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def read_output(fd: int, size: int) -> tuple[bytes, bool]:
    """What a run wrote to an output of `size` bytes, and whether it is full."""
    end = os.lseek(fd, 0, os.SEEK_CUR)  # the run's own offset: it writes through the same file
    return os.pread(fd, min(end, size), 0), end >= size


PROBE = """
import json, os, socket, sys, threading

paths = json.load(sys.stdin)
attempts = {
    "socket": socket.socket,
    "fork": lambda: os.fork() or os._exit(0),
    "exec": lambda: os.execv("/proc/self/exe", ["python"]),
    "proc": lambda: os.listdir("/proc/1"),
    "kill": lambda: os.kill(os.getppid(), 0),
    "read": lambda: open(paths["secret"]),
}
for path in paths["new_files"]:
    attempts["write " + path] = lambda path=path: open(path, "x")
for name, attempt in attempts.items():
    try:
        attempt()
        print(name)
    except OSError:
        pass
threading.Thread(target=print, args=("thread",)).start()
"""


def main(argv: list[str]) -> None:
    """The command: run one file, or with --check say which level works. Raises UserError."""
    import tyro

    from lib.cli import flags

    @dataclass(frozen=True)
    class Config:
        file: tyro.conf.Positional[str] = ""  # Python file to run
        sandbox: str = "auto"  # level: auto, namespaces, landlock, none
        wall: float = 5.0  # seconds of wall time
        check: bool = False  # say which level works here, and why no better one does

    async def outcome_of(config: Config) -> dict:
        async with Sandbox(config.sandbox) as sandbox:
            if config.check:
                return {"level": sandbox.level, "why_not": sandbox.why_not}
            code = pathlib.Path(config.file).read_bytes().decode("utf-8", "surrogateescape")
            outcome = await sandbox.run(code, limits=Limits(wall=config.wall))
            return asdict(outcome) | {"results": None}

    config = flags(Config, argv, "Run one Python file in the sandbox; print its outcome as JSON.")
    if not config.check and not os.path.isfile(config.file):
        raise UserError(
            f"no such file: {config.file}" if config.file else "name a file, or --check"
        )
    try:
        print(json.dumps(asyncio.run(outcome_of(config))))
    except (SandboxError, ValueError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    from lib.cli import command

    command(main)
