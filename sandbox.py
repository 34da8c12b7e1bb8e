"""The sandbox: untrusted Python in a locked process. Run a snippet, or talk with a script over a pipe.

    async with Sandbox() as sandbox:
        outcome = await sandbox.run("print(6 * 7)")                  # Outcome(status="ok", stdout="42\n", ...)
        session = await sandbox.talk(script, {"question": "..."})    # then session.receive() and session.send(...)

One fork server (jail.py) is started per Sandbox, locks itself in, and forks once per run; this file is the parent's half.
Code and input travel in memfds that the server never reads; output lands in sealed memfds of a fixed size, so that a
flood ends the run and never fills the parent's memory. Every message of a script is checked by the receiver.

| level | what holds |
|---|---|
| landlock | reads the interpreter's files, writes nothing, no network, no new process, no signal to others; clean environment |
| seccomp | the same, but files that this user may read stay readable; only when asked for by name |
| none | limits and a clean environment only; only when asked for by name |

Not covered: kernel exploits, side channels, memory beyond (runs at once) x (limit of one), `stat` of paths.
As a command: `python sandbox.py FILE.py` runs one file and prints its outcome as JSON; `--check` reports the level.
Test: `pytest tests/test_sandbox.py`. Read next: policy.py.
"""
import argparse
import asyncio
import fcntl
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass

HERE = pathlib.Path(__file__).resolve().parent
LEVELS = ("landlock", "seccomp", "none")
MAX_LINE = 1 << 20  # bytes of one message of a script
STATUS = {0: "ok", 1: "error", 97: "memory", 98: "invalid"}  # exit codes of jail.py


class SandboxError(RuntimeError):
    """The sandbox itself failed (its server died or could not start): never the fault of the code that ran in it."""


class ProtocolError(ValueError):
    """A script sent something that is not a message."""


@dataclass(frozen=True)
class Limits:
    """What one run may use. Seconds, bytes. `wall` is the run's own time: it stops while an agent answers."""
    wall: float = 5.0
    cpu: float = 5.0
    memory: int = 512 << 20
    output: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """How a run ended. status: ok, error, invalid (does not compile), timeout, cpu, memory, output, crash, killed, protocol."""
    status: str
    stdout: str
    stderr: str
    seconds: float
    level: str


class Run:
    """One run in flight: its descriptors here, and its end as a future."""

    def __init__(self, sandbox, name, limits, output, errors):
        self.sandbox, self.name, self.limits = sandbox, name, limits
        self.output, self.errors = output, errors
        self.ended = asyncio.get_running_loop().create_future()

    async def outcome(self) -> Outcome:
        """Wait for the end of the run (everything it started is dead by then). Raises SandboxError if the server died."""
        try:
            report = await self.ended
            stdout, full = _read_capped(self.output, self.limits.output)
            stderr, full_too = _read_capped(self.errors, self.limits.output)
        finally:
            os.close(self.output)
            os.close(self.errors)
        status = report["why"] or STATUS.get(report["exit"], "crash")
        if status == "crash" and report["exit"] in (-24, -9) and report["cpu"] >= self.limits.cpu:  # SIGXCPU, SIGKILL
            status = "cpu"
        elif status in ("ok", "error", "crash") and (full or full_too):
            status = "output"
        return Outcome(status, stdout, stderr, round(report["seconds"], 4), self.sandbox.level)


class Session:
    """A script in flight that talks: JSON lines over a socket pair. Receiving checks the form, the caller the content."""

    def __init__(self, run, line):
        self.run, self.line, self.buffer = run, line, bytearray()
        self.left, self.running_since = run.limits.wall, asyncio.get_running_loop().time()

    async def receive(self) -> dict | None:
        """The script's next message, or None when it has ended. Its clock runs meanwhile. Raises ProtocolError."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self.buffer:
            if len(self.buffer) > MAX_LINE:
                raise ProtocolError(f"a message of more than {MAX_LINE} bytes")
            try:
                chunk = await loop.sock_recv(self.line, 1 << 16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self.buffer += chunk
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer[:] = rest
        self._stop_clock()
        return parse_message(line)

    async def send(self, message: dict) -> None:
        """Answer the script; its clock runs again. A script that has died meanwhile is noticed by the next receive."""
        self.sandbox_clock(self.left)
        self.running_since = asyncio.get_running_loop().time()
        try:
            await asyncio.get_running_loop().sock_sendall(self.line, json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _stop_clock(self):
        self.left = max(0.001, self.left - (asyncio.get_running_loop().time() - self.running_since))
        self.sandbox_clock(None)

    def sandbox_clock(self, left):
        self.run.sandbox.post({"op": "clock", "id": self.run.name, "left": left})

    def kill(self):
        self.run.sandbox.post({"op": "kill", "id": self.run.name})

    async def finish(self) -> Outcome:
        """Wait for the end (after `kill`, or when receive gave None) and give back the outcome."""
        try:
            return await self.run.outcome()
        finally:
            self.line.close()


class Sandbox:
    """The fork server of this process, and the runs in it. Use it in one event loop: `async with Sandbox() as sandbox`.

    level: "auto" takes landlock and refuses to start without it; a name takes that level or raises SandboxError.
    """

    def __init__(self, level: str = "auto"):
        self.wanted, self.level = level, level
        self.server, self.control, self.runs, self.counter, self.unsent = None, None, {}, 0, []

    async def __aenter__(self):
        self.level = "landlock" if self.wanted == "auto" else self.wanted
        if self.level not in LEVELS:
            raise SandboxError(f"unknown sandbox level {self.level!r}: one of auto, {', '.join(LEVELS)}")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a run in flight holds up to seven descriptors here
        await self._start()
        return self

    async def __aexit__(self, *_):
        self._stop("the sandbox was closed")

    async def _start(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # No environment but this: nothing of the trainer's reaches a run. -S -s -P: no site, no user site, no cwd on the path.
        command = [sys.executable, "-S", "-s", "-P", str(HERE / "jail.py"), str(theirs.fileno()), self.level, str(HERE / "mas.py")]
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "HOME": "/", "PATH": "/usr/bin:/bin"}
        self.server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], cwd="/", stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        theirs.close()
        ours.settimeout(20)
        try:
            ready = ours.recv(4096)
        except TimeoutError:
            ready = b""
        if not ready:
            self.server.kill()
            reason = self.server.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            raise SandboxError(f"sandbox level {self.level!r} does not work here: {' '.join(reason)}; another level: --sandbox NAME")
        self.server.stderr.close()
        ours.setblocking(False)
        self.control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_report)

    def _stop(self, why):
        if self.control is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.control.fileno())
        loop.remove_writer(self.control.fileno())
        self.control.close()
        self.control = None
        self.server.kill()  # its runs follow: PDEATHSIG
        self.server.wait()
        for _, fds in self.unsent:
            for fd in fds:
                os.close(fd)
        self.unsent.clear()
        for run in self.runs.values():
            if not run.ended.done():
                run.ended.set_exception(SandboxError(why))
        self.runs.clear()

    def _on_report(self):
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
            run = self.runs.pop(report["id"], None)
            if run and not run.ended.done():
                if "failed" in report:
                    run.ended.set_exception(SandboxError(report["failed"]))
                else:
                    run.ended.set_result(report)

    def post(self, message: dict, fds=()):
        """Send one control message. A full socket is not a dead server: what does not fit waits its turn."""
        if self.control is None:
            for fd in fds:
                os.close(fd)
            return
        self.unsent.append((json.dumps(message).encode(), list(fds)))
        self._flush()

    def _flush(self):
        loop = asyncio.get_running_loop()
        while self.unsent:
            data, fds = self.unsent[0]
            try:
                socket.send_fds(self.control, [data], fds)
            except BlockingIOError:
                return loop.add_writer(self.control.fileno(), self._flush)
            except (BrokenPipeError, ConnectionResetError):
                return  # _on_report will see the end
            for fd in fds:
                os.close(fd)
            self.unsent.pop(0)
        loop.remove_writer(self.control.fileno())

    async def _launch(self, kind, code, stdin, limits, extra_fds=()):
        if self.control is None:
            await self._start()  # the server died: runs that were in it are lost, the next ones are not
        code = code.encode("utf-8", "surrogatepass")
        opened = list(extra_fds)
        try:
            opened.append(_memfd(b"%d\n" % len(code) + code + stdin))
            opened += [_memfd(size=limits.output), _memfd(size=limits.output)]
            opened += [os.dup(fd) for fd in opened[-2:]]
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise SandboxError(f"no descriptors or memory for another run ({error.strerror})") from None
        *extra, source, output, errors, output_copy, errors_copy = opened
        self.counter += 1
        run = self.runs[self.counter] = Run(self, self.counter, limits, output, errors)
        fds = [source, output_copy, errors_copy, *extra]
        self.post({"op": "run", "id": run.name, "kind": kind, "limits": asdict(limits)}, fds)
        return run

    async def run(self, code: str, stdin: bytes = b"", limits: Limits = Limits()) -> Outcome:
        """Run `code` with `stdin` and return how it ended. Raises SandboxError if the sandbox itself failed."""
        return await (await self._launch("snippet", code, stdin, limits)).outcome()

    async def talk(self, script: str, variables: dict, limits: Limits = Limits()) -> Session:
        """Start a MAS script that sees `variables` and the names of mas.py. Raises SandboxError."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        session = Session(await self._launch("mas", script, b"", limits, [theirs.detach()]), ours)
        await session.receive()  # "start": the script is about to run; now it gets its variables
        await session.send(variables)
        return session


def parse_message(line: bytes) -> dict:
    """One message of a script: a JSON object. Raises ProtocolError on anything else, of any size or depth.

    >>> parse_message(b'{"op": "submit", "reply": 3}')
    {'op': 'submit', 'reply': 3}
    """
    try:
        message = json.loads(line.decode("utf-8", "surrogatepass"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {str(error)[:100]}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is a JSON object")
    return message


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _memfd(content: bytes = b"", size: int | None = None) -> int:
    """A memory file: with `content`, at its start; or of a fixed `size`, sealed, for output."""
    fd = os.memfd_create("run", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    if size is None:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _read_capped(fd, cap):
    written = os.lseek(fd, 0, os.SEEK_CUR)  # the run's own offset: it writes through the same open file
    data = os.pread(fd, min(written, cap), 0)
    return data.decode("utf-8", "replace"), written >= cap


def main():
    parser = argparse.ArgumentParser(description="Run one Python file in the sandbox and print its outcome as JSON.")
    parser.add_argument("file", nargs="?", help="the file to run")
    parser.add_argument("--sandbox", default="auto", choices=("auto", *LEVELS), help="level (default: %(default)s)")
    parser.add_argument("--wall", type=float, default=5.0, help="seconds of wall time (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="report the level that works here")
    arguments = parser.parse_args()
    if not arguments.check and not (arguments.file and os.path.isfile(arguments.file)):
        sys.exit(_fail(f"no such file: {arguments.file}" if arguments.file else "name a file to run, or --check"))

    async def go():
        async with Sandbox(arguments.sandbox) as sandbox:
            if arguments.check:
                return {"level": sandbox.level}
            code = pathlib.Path(arguments.file).read_bytes().decode("utf-8", "surrogateescape")
            return asdict(await sandbox.run(code, limits=Limits(wall=arguments.wall)))

    try:
        print(json.dumps(asyncio.run(go())))
    except SandboxError as error:
        sys.exit(_fail(str(error)))


def _fail(message):
    print(f"sandbox.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
