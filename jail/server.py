"""The half of the sandbox that lives inside: a fork server that locks itself in, then forks once per run.

    parent (sandbox.py)  --SEQPACKET: one JSON message, descriptors attached-->  server  --fork-->  run

The server is trusted and small: it runs no untrusted code before the fork, and never sees code, input or output, which are in
descriptors that it passes on. In order, it
  1. leaves the host. Level namespaces: a user, pid, net, mount, ipc and uts namespace of its own, with nothing mounted but
     the interpreter, read-only. Level landlock: no capability, and Landlock leaves only reading of the interpreter;
  2. installs a seccomp allow-list (no sockets, no exec, no ptrace ...), which the runs inherit;
  3. forks per run. The run gets its limits, at level namespaces its own scratch directory in memory, and a second filter
     that takes away what only the server needs: new processes, signals, mounts, descriptor passing. So one run = one
     process: SIGKILL is a sure kill, RLIMIT_AS and RLIMIT_CPU are exact. Threads are counted: the kernel asks the server.
Refused calls return EPERM; chmod and utime pretend to succeed; a new process is EAGAIN, as at any limit of processes.

Source: ours, after landlock(7), seccomp(2), seccomp_unotify(2) and user_namespaces(7).  Test: `pytest tests/test_sandbox.py`.
"""
import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import linecache
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38

# x86-64 system call numbers. RUN: what a Python process with threads needs. FILES: what a scratch directory needs besides.
# SERVER: what only the fork server needs.
RUN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 34, 35, 36,
       37, 38, 39, 60, 61, 63, 74, 75, 77, 78, 79, 80, 81, 89, 95, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 115,
       118, 120, 121, 124, 127, 128, 131, 140, 158, 186, 201, 202, 204, 217, 218, 219, 221, 228, 229, 230, 231, 232, 233, 247,
       257, 262, 267, 269, 270, 271, 273, 281, 290, 291, 292, 293, 309, 318, 324, 332, 334, 436, 439]
FILES = [76, 82, 83, 84, 87, 258, 263, 264, 316]  # truncate rename mkdir rmdir unlink, and their *at forms
CLONE, FORK, VFORK, KILL, TGKILL, PRLIMIT, PRCTL, IOCTL, FCNTL, CLONE3, CLOSE_RANGE = 56, 57, 58, 62, 234, 302, 157, 16, 72, 435, 436
OPEN, OPENAT, SECCOMP, PIVOT_ROOT, MOUNT_SETATTR = 2, 257, 317, 155, 442
SERVER = [KILL, 46, 47, 109, 126, 141, 160, SECCOMP, 434]  # kill sendmsg recvmsg setpgid capset setpriority setrlimit seccomp pidfd_open
MOUNTING = [165, 272]  # mount unshare: the scratch directory of a run at level namespaces
PRETEND = [90, 91, 132, 235, 261, 268, 280, 452]  # chmod and utime in all their forms
IOCTLS, NOTIFY_RECEIVE, NOTIFY_SEND = [0x5401, 0x541B, 0x5421, 0x5450, 0x5451], 0xC0502100, 0xC0182101  # TCGETS FIO*
FCNTLS_REFUSED = [5, 6, 7, 36, 37, 38, 8, 10, 15, 1024, 1026, 1031]  # locks; SETOWN SETSIG SETOWN_EX SETLEASE NOTIFY SETPIPE_SZ: kills, memory
THREAD, NEWNS, WRITES = 0x10400, 0x20000, os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
NAMESPACES = NEWNS | 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mount user pid net ipc uts
ALLOW, NOTIFY, KILL_PROCESS, SUCCESS, EPERM, EAGAIN, ENOSYS = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x50000, 0x50001, 0x5000B, 0x50026


def must(result, what):
    """The result of a C call. Raises OSError if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def _op(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k)


def _rule(numbers, verdict):
    """`verdict` for these calls."""
    return [op for number in numbers for op in (_op(0x15, 0, 1, number), _op(0x06, 0, 0, verdict))]


def _argument_rule(number, argument, values, verdict, otherwise, mask=0xFFFFFFFF):
    """If the call is `number`: `verdict` when its argument (low 32 bits, after `mask`) is one of `values`, else `otherwise`."""
    body = [_op(0x20, 0, 0, 16 + 8 * argument), _op(0x54, 0, 0, mask), *_rule(values, verdict), _op(0x06, 0, 0, otherwise)]
    return [_op(0x15, 0, len(body), number), *body]


def _program(rules, default):
    head = [_op(0x20, 0, 0, 4), _op(0x15, 1, 0, 0xC000003E), _op(0x06, 0, 0, KILL_PROCESS),  # x86-64 only
            _op(0x20, 0, 0, 0), _op(0x35, 0, 1, 0x40000000), _op(0x06, 0, 0, KILL_PROCESS)]  # and not the x32 numbers
    return b"".join([*head, *rules, _op(0x06, 0, 0, default)])


def server_filter(level):
    """The allow-list of the server and all that it forks. A new thread is asked for: see Server.thread. Without clone3, glibc takes clone."""
    reading = _argument_rule(OPEN, 1, [0], ALLOW, EPERM, WRITES) + _argument_rule(OPENAT, 2, [0], ALLOW, EPERM, WRITES)
    writing = _rule(FILES + MOUNTING, ALLOW) if level == "namespaces" else reading
    return _program(writing + _rule(RUN + SERVER + [FORK, TGKILL, PRLIMIT, PRCTL], ALLOW) + _rule(PRETEND, SUCCESS) + _rule([CLONE3], ENOSYS)
                    + _argument_rule(CLONE, 0, [THREAD], NOTIFY, ALLOW, mask=THREAD) + _rule([VFORK], EAGAIN)
                    + _argument_rule(IOCTL, 1, [*IOCTLS, NOTIFY_RECEIVE, NOTIFY_SEND], ALLOW, EPERM)
                    + _argument_rule(FCNTL, 1, FCNTLS_REFUSED, EPERM, ALLOW), EPERM)


# What a run loses besides. It may ask for its own limits, which it can't raise without capabilities.
RUN_FILTER = _program(_rule(SERVER + MOUNTING + [TGKILL], EPERM) + _rule([FORK], EAGAIN)
                      + _argument_rule(CLONE, 0, [THREAD], ALLOW, EAGAIN, mask=THREAD) + _argument_rule(CLOSE_RANGE, 2, [0], ALLOW, EPERM)
                      + _argument_rule(PRCTL, 0, [PR_SET_NAME], ALLOW, EPERM) + _argument_rule(PRLIMIT, 0, [0], ALLOW, EPERM), ALLOW)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program, flags=0):
    """Install a seccomp filter; with flags=8, returns the descriptor on which it asks."""
    return must(LIBC.syscall(SECCOMP, 1, flags, ctypes.byref(_Program(len(program) // 8, program))), "seccomp")


def readable_paths():
    """What the interpreter needs to import the standard library and its extension modules."""
    paths = {os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo",
             "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"}
    return sorted(path for path in paths if os.path.exists(path))


def landlock():
    """Leave only reading, below readable_paths(). Raises OSError where the kernel has no Landlock."""
    abi = must(LIBC.syscall(444, None, 0, 1), "Landlock")
    filesystem = (1 << min(13 + max(abi - 1, 0), 16 if abi >= 5 else 15)) - 1
    ruleset = struct.pack("QQQ", filesystem, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    fd = must(LIBC.syscall(444, ruleset, 24 if abi >= 6 else 16 if abi >= 4 else 8, 0), "Landlock ruleset")
    for path in readable_paths():
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = (1 << 2) | ((1 << 3) if os.path.isdir(path) else 0)  # READ_FILE, READ_DIR
        must(LIBC.syscall(445, fd, 1, struct.pack("=Qi", access, parent), 0), f"Landlock rule for {path}")
        os.close(parent)
    must(LIBC.syscall(446, fd, 0), "Landlock restrict")
    os.close(fd)


def namespaces():
    """Go on as process 1 of a new world: no network, no other process, and of the files only readable_paths(), read-only."""
    uid, gid, sources = os.getuid(), os.getgid(), {path: os.path.realpath(path) for path in readable_paths()}
    must(LIBC.unshare(NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # unshare has cleared it
    if server := os.fork():
        os.close(int(sys.argv[1]))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) and 1)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    must(LIBC.mount(None, b"/", None, 0x44000, None), "mount --make-rprivate")
    must(LIBC.mount(b"root", b"/tmp", b"tmpfs", 6, b"size=1m,mode=755"), "mount /tmp")
    os.mkdir("/tmp/.host")
    must(LIBC.syscall(PIVOT_ROOT, b"/tmp", b"/tmp/.host"), "pivot_root")
    os.chdir("/")
    for path, source in sources.items():
        if not os.path.exists(path):  # else it is inside of one that is there already
            os.makedirs(path if os.path.isdir("/.host" + source) else os.path.dirname(path), exist_ok=True)
            if not os.path.exists(path):
                os.close(os.open(path, os.O_CREAT))
            must(LIBC.mount(f"/.host{source}".encode(), path.encode(), None, 0x5000, None), f"bind {path}")
    must(LIBC.umount2(b"/.host", 2), "umount")
    os.rmdir("/.host")
    os.makedirs("/tmp", exist_ok=True)  # where each run mounts its own
    must(LIBC.syscall(MOUNT_SETATTR, -100, b"/", 0x8000, struct.pack("4Q", 3, 0, 0, 0), 32), "mount read-only")


def drop_capabilities():
    must(LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capset")


# Names that candidate programs rely on, as the official runners put them before a program: here they are found where builtins are
PRELUDE = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json typing os time".split()
NAMES, EXIT = {}, {"ok": 0, "error": 1, "processes": 95, "files": 96, "memory": 97, "invalid": 98}
ERRNOS = {errno.EAGAIN: "processes", errno.ENOMEM: "memory", errno.EFBIG: "files", errno.ENOSPC: "files", errno.EMFILE: "files"}


def enter_run(fds, limits, level, server):
    """In the fresh child: the run's descriptors at 0, 1, 2 (and 3), its limits, its scratch directory, its filter."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(99)  # it died before this line
    os.setpgid(0, 0)  # out of reach of Ctrl-C. Not a session: that would be a scheduling group, in which `nice` says nothing
    os.nice(5)  # a crowd of busy loops must not delay its own killing
    moved = [os.dup(fd) for fd in fds]  # first out of the way of 0-3
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    must(LIBC.syscall(CLOSE_RANGE, ctypes.c_uint(len(moved)), ctypes.c_uint(0xFFFFFFFF), 0), "close_range")
    if level == "namespaces":
        if limits["scratch"]:
            must(LIBC.unshare(NEWNS), "unshare")
            options = f"size={limits['scratch']},nr_inodes={max(limits['files'], 1)},mode=700"
            must(LIBC.mount(b"scratch", b"/tmp", b"tmpfs", 6, options.encode()), "mount scratch")
            os.chdir("/tmp")
        drop_capabilities()
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for name, limit in (("CPU", math.ceil(limits["cpu"])), ("AS", limits["memory"]), ("FSIZE", max(limits["scratch"], 1 << 24)), ("NOFILE", 64), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if level != "none":
        install(RUN_FILTER)


def read_text():
    # Descriptor 0, a memory file, holds setup, code, driver and input; of the first three, each comes after its length in 16 bytes
    return os.read(0, int(os.read(0, 16))).decode("utf-8", "surrogatepass")


def show_error():
    """The traceback with the script's own frames only, as a person who runs the script would want it."""
    kind, error, trace = sys.exc_info()
    frames = [frame for frame in traceback.extract_tb(trace, limit=-20) if frame.filename == "<script>"]
    text = "Traceback (most recent call last):\n" * bool(frames) + "".join(traceback.format_list(frames) + traceback.format_exception_only(kind, error))
    sys.stderr.write(text if len(text) < 8000 else f"{text[:4000]}\n...\n{text[-4000:]}")


def connect_mas(module):
    """Give mas.py its line to the parent: JSON lines on descriptor 3."""
    out, into = open(3, "wb", closefd=False), open(3, "rb", closefd=False)

    def request(message):
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()
        line = into.readline()
        if not line:
            os._exit(EXIT["error"])  # the parent has ended this run
        return json.loads(line)

    module._request = request
    return {name: getattr(module, name) for name in module.__all__}


def execute(setup, code, driver, scope):
    """Run `code` between the trusted setup, in its scope, and the trusted driver, in one of its own. Returns how it ended, one of EXIT."""
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
    except BaseException as error:  # the boundary: whatever untrusted code raises becomes text and a status
        show_error()
        return ERRNOS.get(error.errno, "error") if isinstance(error, OSError) else "error"
    return "ok"


def run(kind, mas):
    """Run what descriptor 0 holds: a program, a candidate program, or a script that talks ("mas", "line"). Never returns."""
    status = "error"
    try:
        setup, code, driver = read_text(), read_text(), read_text()
        main = types.ModuleType("candidate" if driver else "__main__")
        scope, sys.modules["__main__"], sys.modules[main.__name__] = main.__dict__, main, main
        if kind in ("candidate", "line"):
            scope["__builtins__"] = NAMES
        if kind in ("mas", "line"):
            names = connect_mas(mas) | mas._request({"op": "start"})
            scope |= names if kind == "mas" else {}
        status = execute(setup, code, driver, scope)
        threading._shutdown()  # as the interpreter does at its end: wait for threads that are not daemons
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the boundary, again: a script can break sys.stdout, threading or recursion itself
        status = "error" if status == "ok" else status
    finally:
        os._exit(EXIT[status])


class Server:
    """Forks, keeps the deadlines, reaps, reports. What it is sent is the trusted parent's, yet nothing malformed stops it."""

    def __init__(self, control, listener, level, mas):
        self.control, self.listener, self.level, self.mas = control, listener, level, mas
        self.runs, self.by_pidfd, self.unsent, self.poll, self.pid = {}, {}, [], select.poll(), os.getpid()
        self.fork = ctypes.PyDLL(None).fork  # a third of os.fork's page faults: one thread, so there is no lock to repair
        for fd in (control.fileno(), listener or control.fileno()):
            self.poll.register(fd, select.POLLIN)

    def serve(self):
        while True:
            deadlines = [run.deadline for run in self.runs.values() if run.deadline is not None]
            wait = None if not deadlines else min(max(0, min(deadlines) - time.monotonic()), 60) * 1000 + 0.5
            for fd, event in self.poll.poll(wait):
                if fd == self.listener:
                    self.thread()
                elif fd != self.control.fileno():
                    self.reap(self.by_pidfd.pop(fd))
                elif event & select.POLLHUP:
                    sys.exit(0)  # the parent is gone; PDEATHSIG takes the runs along
                else:
                    self.receive() if event & select.POLLIN else self.report()
            now = time.monotonic()
            for name in [name for name, run in self.runs.items() if run.deadline is not None and run.deadline <= now]:
                self.kill(name, "timeout")

    def receive(self):
        data, fds, _, _ = socket.recv_fds(self.control, 4096, 8)
        with contextlib.suppress(ValueError, TypeError, LookupError, ArithmeticError, RecursionError):  # what is not a message
            self.obey(json.loads(data), fds)
        for fd in fds:
            os.close(fd)

    def obey(self, message, fds):
        operation, name = message["op"], message["id"]
        if operation == "run" and type(name) is int and name not in self.runs and 3 <= len(fds) <= 4:
            limits = {key: message["limits"][key] for key in ("wall", "cpu", "memory", "output", "scratch", "files", "threads")}
            if all(type(limit) in (int, float) and 0 <= limit < 1 << 50 for limit in limits.values()):
                self.start(name, message["kind"], limits, fds)
        elif operation == "kill" and name in self.runs:
            self.kill(name, str(message["why"])[:40])
        elif operation == "clock" and name in self.runs:  # the time that is left; None stops the clock
            left = message["left"]
            self.runs[name].deadline = None if left is None else time.monotonic() + min(max(0.0, float(left)), 1e9)

    def start(self, name, kind, limits, fds):
        pid = self.fork()
        if pid == 0:
            try:
                enter_run(fds, limits, self.level, self.pid)
                run(kind, self.mas)
            finally:
                os._exit(99)  # never back into the server's loop
        if pid < 0:  # this run fails, the others and the server go on
            return self.report({"id": name, "failed": "no process could be started"})
        pidfd, now = os.pidfd_open(pid), time.monotonic()
        self.runs[name] = types.SimpleNamespace(pid=pid, pidfd=pidfd, deadline=now + limits["wall"], started=now, why=None, threads=limits["threads"])
        self.by_pidfd[pidfd] = name
        self.poll.register(pidfd, select.POLLIN)

    def thread(self):
        """A run wants to start a thread: let it, or end the run if that is one too many."""
        with contextlib.suppress(FileNotFoundError):  # the run was killed while it asked
            number, tid = struct.unpack_from("QI", fcntl.ioctl(self.listener, NOTIFY_RECEIVE, bytes(80)))
            for name, run in self.runs.items():
                if LIBC.syscall(TGKILL, run.pid, tid, 0) == 0:  # the run that this thread belongs to
                    run.threads -= 1
                    if run.threads < 0:
                        return self.kill(name, "processes")
            fcntl.ioctl(self.listener, NOTIFY_SEND, struct.pack("QqiI", number, 0, 0, 1))  # 1: go on with the call

    def kill(self, name, why):
        run = self.runs[name]
        run.why, run.deadline = run.why or why, None
        os.kill(run.pid, signal.SIGKILL)

    def reap(self, name):
        run = self.runs.pop(name)
        self.poll.unregister(run.pidfd)
        os.close(run.pidfd)
        if self.level == "none":
            LIBC.killpg(run.pid, signal.SIGKILL)  # what it started, too
        _, status, usage = os.wait4(run.pid, 0)
        self.report({"id": name, "exit": os.waitstatus_to_exitcode(status), "why": run.why, "seconds": time.monotonic() - run.started,
                     "cpu": usage.ru_utime + usage.ru_stime})

    def report(self, *messages):
        """Send what fits; a parent that is busy must not hold up the deadlines."""
        self.unsent += [json.dumps(message).encode() for message in messages]
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.control.sendmsg([self.unsent[0]])
                del self.unsent[0]
        self.poll.modify(self.control, select.POLLIN | (select.POLLOUT if self.unsent else 0))


def main():
    level, mas = sys.argv[2], types.ModuleType("mas")
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then closes this server in order
    sys.path = [path for path in sys.path if path and path.startswith(sys.base_prefix)]
    import builtins, decimal, fractions, random  # noqa: E401, F401
    for name in PRELUDE:
        exec(f"import {name}\nfrom {name} import *", NAMES)
    NAMES.update(vars(builtins))
    exec(compile(open(sys.argv[3]).read(), "mas.py", "exec"), mas.__dict__)
    sys.modules["mas"] = mas  # so that a script may import it
    random.seed(0)  # every run starts from the same state: scripts that draw are as reproducible as the rest
    limit = sys.setrecursionlimit  # a billion frames would end as slow death by memory; this many end as RecursionError
    sys.setrecursionlimit = lambda frames: limit(min(frames, 100_000))
    sys.stdin.reconfigure(errors="replace")
    if level == "namespaces":
        namespaces()
    control = socket.socket(fileno=int(sys.argv[1]))
    must(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if level in ("landlock", "seccomp"):
        drop_capabilities()
    if level == "landlock":
        landlock()
    listener = install(server_filter(level), flags=8) if level != "none" else None
    control.sendmsg([b"ready"])
    control.setblocking(False)
    gc.freeze()
    Server(control, listener, level, mas).serve()


if __name__ == "__main__":
    main()
