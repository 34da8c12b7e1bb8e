"""A run: what happens in the process that the server has just forked.

It takes its descriptors and limits, its scratch directory and its filter; then it runs what
descriptor 0 holds: trusted setup, untrusted code, trusted driver. Its exit code says how it ended.

Test: `pytest tests/test_sandbox.py`. Read next: ../lib/tools.py.
"""

import ctypes
import errno
import json
import linecache
import math
import os
import resource
import sys
import threading
import traceback
import types

from jail.isolation import LIBC, NEWNS, die_with_parent, drop_capabilities, must
from jail.seccomp import RUN_FILTER, install
from jail.syscalls import NUMBERS

# Names that candidate programs rely on, as the official runners put them before a program: here
# they are found where builtins are.
PRELUDE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing", "os"),
    "time",
)
NAMES = {}  # the builtins of candidates, filled by the server before it locks itself in

EXIT_CODES = {"ok": 0, "error": 1, "processes": 95, "files": 96, "memory": 97, "invalid": 98}
NEVER_STARTED = 99  # exit code of a run that did not come so far
STATUS_OF_ERRNO = {
    errno.EAGAIN: "processes",
    errno.ENOMEM: "memory",
    errno.EFBIG: "files",
    errno.ENOSPC: "files",
    errno.EMFILE: "files",
}
MIN_FILE_BYTES = 1 << 24  # a file may be at least so large, scratch directory or not
MAX_TRACEBACK_CHARS = 8000


def enter_run(fds: list[int], limits: dict, level: str, server: int) -> None:
    """In the fresh child: descriptors at 0, 1, 2 (and 3), limits, scratch directory, filter."""
    die_with_parent()
    if os.getppid() != server:
        os._exit(NEVER_STARTED)  # it died before that line
    # Out of reach of Ctrl-C. Not a session: that would be a scheduling group, in which `nice` says
    # nothing.
    os.setpgid(0, 0)
    os.nice(5)  # a crowd of busy loops must not delay its own killing
    moved = [os.dup(fd) for fd in fds]  # first out of the way of 0 to 3
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    first, last = ctypes.c_uint(len(moved)), ctypes.c_uint(0xFFFFFFFF)
    must(LIBC.syscall(NUMBERS["close_range"], first, last, 0), "close_range")
    if level == "namespaces":
        if limits["scratch"]:
            mount_scratch(limits)
        drop_capabilities()
    for name, limit in (
        (resource.RLIMIT_CPU, math.ceil(limits["cpu"])),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, max(limits["scratch"], MIN_FILE_BYTES)),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (limit, limit))
    if level != "none":
        install(RUN_FILTER)


def mount_scratch(limits: dict) -> None:
    must(LIBC.unshare(NEWNS), "unshare")
    num_files = max(limits["files"], 1)
    options = f"size={limits['scratch']},nr_inodes={num_files},mode=700"
    must(LIBC.mount(b"scratch", b"/tmp", b"tmpfs", 6, options.encode()), "mount scratch")
    os.chdir("/tmp")


def read_text() -> str:
    """The next of setup, code and driver, each behind its length in 16 bytes; input follows."""
    return os.read(0, int(os.read(0, 16))).decode("utf-8", "surrogatepass")


def show_error() -> None:
    """The traceback with the script's own frames only, as a person who runs it would want it."""
    kind, error, trace = sys.exc_info()
    frames = []
    for frame in traceback.extract_tb(trace, limit=-20):
        if frame.filename == "<script>":
            frames.append(frame)
    lines = traceback.format_list(frames) + traceback.format_exception_only(kind, error)
    text = "".join(lines)
    if frames:
        text = "Traceback (most recent call last):\n" + text
    if len(text) >= MAX_TRACEBACK_CHARS:
        text = f"{text[:4000]}\n...\n{text[-4000:]}"
    sys.stderr.write(text)


def connect_mas(module: types.ModuleType) -> dict:
    """Give mas.py its line to the trainer, JSON lines on descriptor 3. Returns its public names."""
    out = open(3, "wb", closefd=False)
    into = open(3, "rb", closefd=False)

    def request(message):
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()
        line = into.readline()
        if not line:
            os._exit(EXIT_CODES["error"])  # the trainer has ended this run
        return json.loads(line)

    module._request = request
    return {name: getattr(module, name) for name in module.__all__}


def execute(setup: str, code: str, driver: str, scope: dict) -> str:
    """Run the trusted setup and `code` in `scope`, then the trusted driver in a scope of its own.

    Returns how it ended, one of EXIT_CODES.
    """
    try:
        compiled = compile(code, "<script>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        show_error()
        return "invalid"
    linecache.cache["<script>"] = (len(code), None, code.splitlines(True), "<script>")
    try:
        exec(setup, scope)
        exec(compiled, scope)
        if driver:
            exec(compile(driver, "<driver>", "exec"), {"scope": scope})
    except SystemExit as stop:
        return "ok" if stop.code in (None, 0) else "error"
    except MemoryError:
        return "memory"
    except BaseException as error:  # boundary: whatever untrusted code raises becomes a status
        show_error()
        return STATUS_OF_ERRNO.get(error.errno, "error") if isinstance(error, OSError) else "error"
    return "ok"


def run(kind: str, mas: types.ModuleType) -> None:
    """Run what descriptor 0 holds. Never returns.

    kind: "program"; "candidate", a program with PRELUDE's names; "mas", a script that talks;
    "line", a candidate that talks.
    """
    status = "error"
    try:
        setup, code, driver = read_text(), read_text(), read_text()
        main = types.ModuleType("candidate" if driver else "__main__")
        scope = main.__dict__
        sys.modules["__main__"] = main
        sys.modules[main.__name__] = main
        if kind in ("candidate", "line"):
            scope["__builtins__"] = NAMES
        if kind in ("mas", "line"):
            names = connect_mas(mas)
            names |= mas._request({"op": "start"})
            if kind == "mas":
                scope |= names
        status = execute(setup, code, driver, scope)
        # As the interpreter does at its end: wait for threads that are not daemons.
        threading._shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # boundary: a script can break sys.stdout, threading or recursion itself
        status = "error" if status == "ok" else status
    finally:
        os._exit(EXIT_CODES[status])
