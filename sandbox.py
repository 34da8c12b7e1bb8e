"""The sandbox: untrusted Python in a locked process. Run a program, or talk with a script over a pipe.

    async with Sandbox() as sandbox:
        outcome = await sandbox.run("print(6 * 7)")                  # Outcome(status="ok", stdout="42\n", ...)
        session = await sandbox.talk(script, {"question": "..."})    # then session.receive() and session.send(...)

One fork server (jail.py) is started per Sandbox, locks itself in, and forks once per run; this file is the parent's half.
Code and input travel in sealed memfds that the server never reads; output lands in memfds of a fixed size, so that a flood
ends the run and never fills the parent's memory. Every message of a script is checked: type, size, depth, number.
The level is the best that passes a self-test here, unless one is asked for by name:

| | namespaces | landlock | seccomp | none |
|---|---|---|---|---|
| can read | the interpreter; no other file exists | the interpreter; `stat` sees any path | what this user may, /proc too | the same |
| can write | its scratch directory, in memory | nothing | nothing | what this user may |
| network, new processes, exec, signals to others | no | no | no | yes |
| wall, CPU, memory, output, files | limited | limited | limited | limited, each process alone |
| threads | limited | limited | limited | not limited |
| is chosen | first | where namespaces fail | only by name | only by name |

Not covered at any level: bugs of the kernel, side channels, memory beyond (runs at once) x (limits of one; page tables can be half
a gigabyte more). Linux only, and on x86-64 but for `none`: elsewhere use a container.
As a command: `python sandbox.py FILE.py` runs one file and prints its outcome as JSON; `--check` says which level works here.
Test: `pytest tests/test_sandbox.py`. Speed: `python tests/bench_sandbox.py`. Read next: policy.py.
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
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

from jail import EXIT, readable_paths

HERE = pathlib.Path(__file__).resolve().parent
LEVELS = ("namespaces", "landlock", "seccomp", "none")
MAX_LINE, MAX_DEPTH, MAX_PARTS = 1 << 20, 8, 50_000  # of one message of a script: bytes, levels of nesting, lists and objects
RESULTS = 4 << 20  # bytes that a driver may write
# No environment but this: nothing of the trainer's reaches a run. -S -s -P: no site, no user site, no cwd on the path.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "HOME": "/tmp", "PATH": "/usr/bin:/bin", "MALLOC_ARENA_MAX": "1"}
COMMAND = [sys.executable, "-S", "-s", "-P", str(HERE / "jail.py")]


class SandboxError(RuntimeError):
    """The sandbox itself failed (its server died or could not start): never the fault of the code that ran in it."""


class ProtocolError(ValueError):
    """A script sent something that is not a message, or too many."""


@dataclass(frozen=True)
class Limits:
    """What one run may use: seconds, bytes, numbers. `wall` is the run's own time: it stops while an agent answers."""
    wall: float = 5.0
    cpu: float = 5.0
    memory: int = 512 << 20  # address space of the one process that a run is; scratch and output come on top
    output: int = 64 << 10  # each of stdout and stderr
    scratch: int = 16 << 20  # the scratch directory (level namespaces); 0: none
    files: int = 1000  # in it
    threads: int = 64  # started, over the run's life; processes: none
    messages: int = 1000  # of a script that talks

    def __post_init__(self):
        if bad := [name for name, value in asdict(self).items() if not 0 <= value < 1 << 50]:
            raise ValueError(f"limits have to be numbers from 0, not infinite: {', '.join(bad)}")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    status: ok, error (it raised), invalid (does not compile), crash (a signal), timeout (wall), cpu, memory, output, files (size
    or number), processes (or threads), protocol (no message), messages (too many), killed (by the caller).
    """
    status: str
    stdout: str
    stderr: str
    seconds: float
    level: str
    cpu: float = 0.0  # seconds
    results: bytes = b""  # what a driver wrote


class Session:
    """One run in flight. A script that talks has a `line`, JSON lines over a socket: form is checked here, content by the caller."""

    def __init__(self, sandbox, name, limits, outputs):
        self.sandbox, self.name, self.limits, self.outputs, self.line = sandbox, name, limits, outputs, None
        self.loop, self.buffer, self.messages = asyncio.get_running_loop(), bytearray(), 0
        self.ended, self.left, self.running_since = self.loop.create_future(), limits.wall, self.loop.time()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())  # also where nobody waits for it any more

    async def receive(self) -> dict | None:
        """The script's next message, None when it has ended. Its clock runs until then, and from the next call on. Raises ProtocolError."""
        self._run_clock()
        searched = 0
        while (end := self.buffer.find(b"\n", searched)) < 0:
            searched = len(self.buffer)
            if searched > MAX_LINE:
                break
            with contextlib.suppress(ConnectionResetError):
                self.buffer += await self.loop.sock_recv(self.line, 1 << 16)
            if len(self.buffer) == searched:
                return None
        if not 0 <= end <= MAX_LINE:
            self.refuse("protocol", f"a message of more than {MAX_LINE} bytes")
        line = bytes(self.buffer[:end])
        del self.buffer[:end + 1]
        self.left, self.running_since = max(0.001, self.left - (self.loop.time() - self.running_since)), None
        self._post("clock", left=None)
        self.messages += 1
        if self.messages > self.limits.messages:
            self.refuse("messages", f"more than {self.limits.messages} messages")
        try:
            return parse_message(line)
        except ProtocolError as error:
            self.refuse("protocol", str(error))

    def refuse(self, why: str, text: str):
        """End the run for what it said, and raise ProtocolError."""
        self.kill(why)
        raise ProtocolError(text) from None

    async def send(self, message: dict) -> None:
        """Answer the script; its clock runs again. A script that has died meanwhile is noticed by the next receive."""
        self._run_clock()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self.loop.sock_sendall(self.line, json.dumps(message).encode() + b"\n")

    def _run_clock(self):
        if self.running_since is None:
            self.running_since = self.loop.time()
            self._post("clock", left=self.left)

    def kill(self, why: str = "killed"):
        """End the run; the first reason stays."""
        self._post("kill", why=why)

    def _post(self, operation, fds=(), **rest):
        self.sandbox.post({"op": operation, "id": self.name, **rest}, fds)

    def abandon(self):
        """End the run if it goes on, as when whoever waits for it is cancelled, and close what is held for it."""
        if not self.ended.done():
            self.kill()
        while self.outputs:
            os.close(self.outputs.pop())
        if self.line:
            self.line.close()

    async def finish(self) -> Outcome:
        """Wait for the end (everything it started is dead by then) and give back the outcome. Raises SandboxError if the server died."""
        self._run_clock()
        try:
            report = await asyncio.shield(self.ended)  # a cancelled waiter must not make the run look ended
            sizes = (self.limits.output, self.limits.output, RESULTS)
            written, full = zip(*(_written(fd, size) for fd, size in zip(self.outputs, sizes)))
        finally:
            self.abandon()
        status = report["why"] or {number: name for name, number in EXIT.items()}.get(report["exit"], "crash")
        if status in ("ok", "error", "crash"):
            late = report["cpu"] > (self.limits.cpu if report["exit"] >= 0 else 0.9 * self.limits.cpu)  # killed by the kernel at its limit, or just before
            status = "cpu" if late else "output" if any(full) else status
        stdout, stderr = (text.decode("utf-8", "replace") for text in written[:2])
        return Outcome(status, stdout, stderr, round(report["seconds"], 4), self.sandbox.level, round(report["cpu"], 4), b"".join(written[2:]))


class Sandbox:
    """The fork server of this process, and the runs in it. Use it in one event loop: `async with Sandbox() as sandbox`.

    level: "auto" takes the best of namespaces and landlock that passes the self-test; a name takes that level or raises
    SandboxError. Afterwards `level` is what was chosen, and `why_not` says of each better level why it was not.
    """

    def __init__(self, level: str = "auto"):
        self.wanted, self.level, self.why_not = level, level, {}
        self.server, self.control, self.runs, self.counter, self.unsent, self.closed = None, None, {}, 0, [], False

    async def __aenter__(self):
        if self.wanted not in ("auto", *LEVELS):
            raise SandboxError(f"unknown sandbox level {self.wanted!r}: one of auto, {', '.join(LEVELS)}")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a run in flight holds up to seven descriptors here
        for self.level in LEVELS[:2] if self.wanted == "auto" else (self.wanted,):
            try:
                await self._start()
                if self.level in LEVELS[:2]:
                    await self._self_test()
                return self
            except (SandboxError, asyncio.CancelledError) as error:
                self._stop("the self-test failed")
                if not isinstance(error, SandboxError):
                    raise
                self.why_not[self.level] = str(error)
        raise SandboxError("; ".join(f"sandbox level {level} does not work here: {why}" for level, why in self.why_not.items()))

    async def __aexit__(self, *_):
        self.closed = True
        self._stop("the sandbox was closed")

    async def _start(self):
        if sys.platform != "linux" or platform.machine() != "x86_64" and self.level != "none":
            raise SandboxError(f"needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
        for hidden in {HERE, pathlib.Path.cwd(), pathlib.Path.home(), pathlib.Path(tempfile.gettempdir())} if self.level in LEVELS[:2] else ():
            if shown := [path for path in readable_paths() if hidden.resolve().is_relative_to(os.path.realpath(path))]:
                raise SandboxError(f"{hidden} would be readable: it is inside of {shown[0]}, which the interpreter needs")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server = subprocess.Popen([*COMMAND, str(theirs.fileno()), self.level, str(HERE / "mas.py")], env=ENVIRONMENT, cwd="/",
                                       pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        theirs.close()
        self.control, ready, reason = ours, b"", "the server did not start"
        ours.settimeout(20)
        with self.server.stderr, contextlib.suppress(TimeoutError):
            ready = ours.recv(4096)
            if not ready:
                reason = (self.server.stderr.read().decode(errors="replace").strip().splitlines() or [reason])[-1]
        if not ready:
            self._stop(reason)
            raise SandboxError(reason)
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_readable)

    async def _self_test(self):
        """One run that tries what must not work, and a thread, which must. Raises SandboxError."""
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "secret").write_text("secret")
            outcome = await self.run(PROBE, json.dumps([folder, os.path.expanduser("~"), str(HERE)]).encode(), Limits(wall=10))
            if outcome.stdout.split() != ["thread"] or os.listdir(folder) != ["secret"]:
                raise SandboxError("the self-test failed: " + " ".join((outcome.stdout or outcome.stderr[-100:] or outcome.status).split()))

    def _stop(self, why):
        control, self.control = self.control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            asyncio.get_running_loop().remove_writer(control.fileno())
            self.server.kill()  # its runs follow: PDEATHSIG, and at level namespaces the end of their process 1
            self.server.wait()
            control.settimeout(5)
            with control, contextlib.suppress(OSError):
                while control.recv(4096):  # until nobody holds the other end
                    pass
        for fd in [fd for _, fds in self.unsent for fd in fds]:
            os.close(fd)
        for session in [session for session in self.runs.values() if not session.ended.done()]:
            session.ended.set_exception(SandboxError(why))
        self.unsent.clear(), self.runs.clear()

    def _on_readable(self):
        while self.control is not None:
            try:
                data = self.control.recv(4096)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                return self._stop("the sandbox's server died")
            report = json.loads(data)
            session = self.runs.pop(report["id"], None)
            if session and not session.ended.done():
                session.ended.set_exception(SandboxError(report["failed"])) if "failed" in report else session.ended.set_result(report)

    def post(self, message: dict, fds=()):
        """Send one control message. A full socket is not a dead server: what does not fit waits its turn."""
        self.unsent.append((json.dumps(message).encode(), fds))
        self._flush()

    def _flush(self):
        loop = asyncio.get_running_loop()
        while self.unsent and self.control is not None:
            data, fds = self.unsent[0]
            try:
                socket.send_fds(self.control, [data], fds)
            except BlockingIOError:
                return loop.add_writer(self.control.fileno(), self._flush)
            except OSError as error:  # as many descriptors on their way as one user may have; or the end, which _on_readable sees
                return loop.call_later(0.01, self._flush) if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM) else None
            for fd in fds:
                os.close(fd)
            self.unsent.pop(0)
        if self.control is not None:
            loop.remove_writer(self.control.fileno())

    async def _launch(self, kind, texts, stdin, limits, line=None):
        if self.closed:
            raise SandboxError("the sandbox was closed")
        if self.control is None:
            await self._start()  # the server died: runs that were in it are lost, the next ones are not
        outputs, theirs, texts = [], [], [text.encode("utf-8", "surrogatepass") for text in texts]
        try:
            theirs.append(_memfd(b"".join(b"%16d" % len(text) + text for text in texts) + stdin))
            for size in [limits.output, limits.output] + [RESULTS] * bool(texts[2] and not line):
                outputs.append(_memfd(size=size))
                theirs.append(os.dup(outputs[-1]))
            theirs += [os.dup(line.fileno())] if line else []
        except OSError as error:
            for fd in outputs + theirs:
                os.close(fd)
            raise SandboxError(f"no descriptors or memory for another run ({error.strerror})") from None
        self.counter += 1
        session = self.runs[self.counter] = Session(self, self.counter, limits, outputs)
        session._post("run", kind=kind, limits=asdict(limits), fds=theirs)
        return session

    async def run(self, code: str, stdin: bytes = b"", limits: Limits = Limits(), driver: str = "", setup: str = "", kind: str = "program") -> Outcome:
        """Run `code` with `stdin` and return how it ended. Raises SandboxError if the sandbox itself failed.

        setup: trusted code that runs before it, in the same scope. driver: trusted code that runs after it, in its own, with the code's
        names as `scope`; what it writes to descriptor 3 are the results. kind: "candidate" finds the names of jail.PRELUDE without importing them.
        """
        return await (await self._launch(kind, (setup, code, driver), stdin, limits)).finish()

    async def talk(self, script: str, variables: dict | None = None, limits: Limits = Limits(), kind: str = "mas", driver: str = "",
                   setup: str = "") -> Session:
        """Start a script that talks. kind: "mas" sees `variables` and the names of mas.py; "line", a candidate, only mas._request. Raises SandboxError."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SandboxError(f"no descriptors for another run ({error.strerror})") from None
        with theirs:
            session = await self._launch(kind, (setup, script, driver), b"", limits, theirs)
        ours.setblocking(False)
        session.line = ours
        try:
            await session.receive()  # "start": the script is about to run; now it gets its variables and its time
            session.left, session.messages = limits.wall, 0
            await session.send(variables or {})
            return session
        except asyncio.CancelledError:
            session.abandon()
            raise


def parse_message(line: bytes) -> dict:
    """One message of a script: a JSON object of at most MAX_DEPTH levels. Raises ProtocolError on anything else.

    >>> parse_message(b'{"op": "submit", "reply": 3}')
    {'op': 'submit', 'reply': 3}
    """
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        if line.count(b"[") + line.count(b"{") > MAX_PARTS:
            raise ValueError("too many parts")
        message = json.loads(line.decode("utf-8", "surrogatepass"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {str(error)[:100]}") from None
    level = [message]
    for _ in range(MAX_DEPTH):
        level = [item for value in level if isinstance(value, (dict, list)) for item in (value.values() if isinstance(value, dict) else value)]
    if level or not isinstance(message, dict):
        raise ProtocolError(f"a message is a JSON object of at most {MAX_DEPTH} levels")
    return message


def _memfd(content: bytes = b"", size: int = 0) -> int:
    """A memory file: with `content`, at its start, or of a fixed `size` for output. Sealed."""
    fd = os.memfd_create("run", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    os.ftruncate(fd, -(-size // 4096) * 4096 or len(content))  # whole pages: of a part of one, a write is refused whole
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL | (0 if size else fcntl.F_SEAL_WRITE))
    return fd


def _written(fd, size):
    """What a run wrote to an output of `size` bytes, and whether that was all it could."""
    end = os.lseek(fd, 0, os.SEEK_CUR)  # the run's own offset: it writes through the same open file
    return os.pread(fd, min(end, size), 0), end >= size


PROBE = """
import json, os, socket, sys, threading
folders = json.load(sys.stdin)
attempts = [("socket", socket.socket), ("fork", lambda: os.fork() or os._exit(0)), ("exec", lambda: os.execv("/proc/self/exe", ["python"])),
            ("proc", lambda: os.listdir("/proc/1")), ("kill", lambda: os.kill(os.getppid(), 0)), ("read", lambda: open(folders[0] + "/secret"))]
for name, attempt in attempts + [("write", lambda: open(folder + "/probe", "x")) for folder in folders]:
    try:
        attempt()
        print(name)
    except OSError:
        pass
threading.Thread(target=print, args=("thread",)).start()
"""


if __name__ == "__main__":
    import cli
    cli.run_file()
