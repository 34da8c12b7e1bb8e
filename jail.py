"""The half of the sandbox that lives inside: a fork server that locks itself in, then forks once per run.

    parent (sandbox.py)  --SEQPACKET: one JSON message, descriptors attached-->  server  --fork-->  run

The server is trusted and small. It never runs untrusted code before the fork, and it never sees code, input or output:
those are in descriptors that it passes on. In order, it
  1. drops every capability and sets no_new_privs;
  2. takes away the file system with Landlock: the interpreter may be read, nothing may be written;
  3. installs a seccomp allow-list (no sockets, no exec, no ptrace, no mounts ...), which the runs inherit;
  4. forks per run. The run adds a second filter that takes away what only the server needs: new processes, signals,
     descriptor passing, limits. So one run = one process, SIGKILL is a sure kill, RLIMIT_AS and RLIMIT_CPU are exact.

Refused calls return EPERM; chmod and utime pretend to succeed; clone3 is ENOSYS so that glibc falls back to clone, whose
flags a filter can read. Linux on x86-64 only. Source of the design: ours, after Landlock(7) and seccomp(2).
Usage: started by sandbox.py, never by hand.  Test: `pytest tests/test_sandbox.py`.
"""
import ctypes
import gc
import json
import linecache
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
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 1, 15, 22, 38, 4

# x86-64 system call numbers. RUN: what a Python process with threads needs. SERVER: what only the fork server needs.
RUN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 34, 35, 36,
       37, 38, 39, 60, 61, 63, 73, 74, 75, 77, 78, 79, 80, 81, 89, 95, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 115,
       118, 120, 121, 124, 127, 128, 131, 140, 158, 186, 201, 202, 204, 217, 218, 219, 221, 228, 229, 230, 231, 232, 233, 247,
       257, 262, 267, 269, 270, 271, 273, 281, 290, 291, 292, 293, 309, 318, 324, 332, 334, 436, 439]
CLONE, FORK, KILL, TGKILL, PRLIMIT, PRCTL, IOCTL, FCNTL, CLONE3, CLOSE_RANGE = 56, 57, 62, 234, 302, 157, 16, 72, 435, 436
SERVER = [FORK, KILL, 46, 47, 112, 141, 160, 434]  # fork kill sendmsg recvmsg setsid setpriority setrlimit pidfd_open
PRETEND = [90, 91, 132, 235, 261, 268, 280, 452]  # chmod and utime in all their forms
IOCTLS = [0x5401, 0x541B, 0x5421, 0x5450, 0x5451]  # TCGETS FIONREAD FIONBIO FIONCLEX FIOCLEX
FCNTLS_REFUSED = [8, 10, 15, 1024, 1026, 1031]  # SETOWN SETSIG SETOWN_EX SETLEASE NOTIFY SETPIPE_SZ: kills, leases, memory
CLONE_THREAD = 0x10000

ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, SUCCESS = 0x00050000 | 1, 0x00050000 | 38, 0x00050000


def _op(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k & 0xFFFFFFFF)


def _load(offset):
    return _op(0x20, 0, 0, offset)


def _if_equal(value, verdict):
    """Two instructions: if the accumulator equals `value`, return `verdict`."""
    return [_op(0x15, 0, 1, value), _op(0x06, 0, 0, verdict)]


def _number_rule(number, verdict):
    return _if_equal(number, verdict)


def _argument_rule(number, argument, values, verdict, otherwise, mask=None):
    """If the call is `number`: `verdict` when its argument (low 32 bits, after `mask`) is one of `values`, else `otherwise`."""
    body = [_load(16 + 8 * argument)]
    if mask is not None:
        body.append(_op(0x54, 0, 0, mask))
    for value in values:
        body += _if_equal(value, verdict)
    body.append(_op(0x06, 0, 0, otherwise))
    return [_op(0x15, 0, len(body), number), *body]


def _program(rules, default):
    head = [_load(4), _op(0x15, 1, 0, 0xC000003E), _op(0x06, 0, 0, KILL_PROCESS),  # x86-64 only
            _load(0), _op(0x35, 0, 1, 0x40000000), _op(0x06, 0, 0, KILL_PROCESS)]  # and not the x32 numbers
    return b"".join(head + [op for rule in rules for op in rule] + [_op(0x06, 0, 0, default)])


def server_filter():
    rules = [_number_rule(number, ALLOW) for number in RUN + SERVER + [CLONE, TGKILL, PRLIMIT, PRCTL]]
    rules += [_number_rule(number, SUCCESS) for number in PRETEND]
    rules.append(_number_rule(CLONE3, ENOSYS))
    rules.append(_argument_rule(IOCTL, 1, IOCTLS, ALLOW, EPERM))
    rules.append(_argument_rule(FCNTL, 1, FCNTLS_REFUSED, EPERM, ALLOW))
    return _program(rules, EPERM)


def run_filter(pid):
    rules = [_number_rule(number, EPERM) for number in SERVER]
    rules.append(_argument_rule(CLONE, 0, [CLONE_THREAD], ALLOW, EPERM, mask=CLONE_THREAD))
    rules.append(_argument_rule(TGKILL, 0, [pid], ALLOW, EPERM))
    rules.append(_argument_rule(PRCTL, 0, [PR_SET_NAME], ALLOW, EPERM))
    rules.append(_argument_rule(PRLIMIT, 0, [0], ALLOW, EPERM))  # its own limits alone, which it can't raise without capabilities
    return _program(rules, ALLOW)


def install(program):
    class Fprog(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    if LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(Fprog(len(program) // 8, program)), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


def landlock(readable):
    """Leave only reading, below the paths in `readable`. Raises OSError where the kernel has no Landlock."""
    abi = LIBC.syscall(444, None, 0, 1)
    if abi < 1:
        raise OSError(ctypes.get_errno(), "no Landlock")
    filesystem = (1 << min(13 + max(abi - 1, 0), 16 if abi >= 5 else 15)) - 1
    ruleset = struct.pack("QQQ", filesystem, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    fd = LIBC.syscall(444, ruleset, size, 0)
    for path in readable:
        if os.path.exists(path):
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access = (1 << 2) | ((1 << 3) if os.path.isdir(path) else 0)  # READ_FILE, READ_DIR
            if LIBC.syscall(445, fd, 1, struct.pack("=Qi", access, parent), 0):
                raise OSError(ctypes.get_errno(), f"Landlock rule for {path}")
            os.close(parent)
    if LIBC.syscall(446, fd, 0):
        raise OSError(ctypes.get_errno(), "Landlock restrict")
    os.close(fd)


def drop_privileges():
    for capability in range(64):
        LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; EPERM when unprivileged, when there is nothing to drop
    if LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def readable_paths():
    """What the interpreter needs to import the standard library and its extension modules."""
    return sorted({os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo",
                   "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"})


# ---------------------------------------------------------------------------------------------------------- one run

EXIT_OK, EXIT_ERROR, EXIT_MEMORY, EXIT_INVALID = 0, 1, 97, 98


def enter_run(fds, limits):
    """In the fresh child: the run's descriptors at 0, 1, 2 (and 3, the protocol), its limits, its filter."""
    os.setsid()
    os.nice(5)  # a crowd of busy loops must not delay its own killing
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    moved = [os.dup(fd) for fd in fds]  # first out of the way of 0-3
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    if LIBC.syscall(CLOSE_RANGE, ctypes.c_uint(len(moved)), ctypes.c_uint(0xFFFFFFFF), 0):  # all others, whatever their number
        raise OSError(ctypes.get_errno(), "close_range")
    cpu = int(limits["cpu"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["output"], limits["output"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    install(run_filter(os.getpid()))


def read_code():
    # The code comes first on descriptor 0, before the input: <length>\n<code><input>
    header = b""
    while not header.endswith(b"\n"):
        header += os.read(0, 1)
    length, code = int(header), b""
    while len(code) < length:
        code += os.read(0, length - len(code))
    return code.decode("utf-8", "surrogatepass")


def show_error():
    """The traceback with the script's own frames only, as a person who runs the script would want it."""
    kind, error, trace = sys.exc_info()
    frames = [frame for frame in traceback.extract_tb(trace, limit=-20) if frame.filename == "<script>"]
    text = "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)) if frames else ""
    sys.stderr.write(text + "".join(traceback.format_exception_only(kind, error)))


def connect_mas(module):
    """Give mas.py its line to the parent: JSON lines on descriptor 3."""
    pending = bytearray()

    def request(message):
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(3, line):]
        while b"\n" not in pending:
            chunk = os.read(3, 65536)
            if not chunk:
                os._exit(EXIT_ERROR)  # the parent has ended this run
            pending.extend(chunk)
        answer, _, rest = bytes(pending).partition(b"\n")
        pending[:] = rest
        return json.loads(answer)

    module._request = request
    return {name: getattr(module, name) for name in module.__all__}


def execute(code, scope):
    """Run `code` to its end. Returns the exit status."""
    try:
        compiled = compile(code, "<script>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        show_error()
        return EXIT_INVALID
    linecache.cache["<script>"] = (len(code), None, code.splitlines(True), "<script>")
    try:
        exec(compiled, scope)
    except SystemExit as stop:
        return EXIT_OK if stop.code in (None, 0) else EXIT_ERROR
    except MemoryError:
        return EXIT_MEMORY
    except BaseException:  # the boundary: whatever untrusted code raises becomes text and a status
        show_error()
        return EXIT_ERROR
    return EXIT_OK


def run(kind, mas):
    status = EXIT_ERROR
    try:
        code, scope = read_code(), {"__name__": "__main__"}
        if kind == "mas":
            scope |= connect_mas(mas) | mas._request({"op": "start"})
        limit = sys.setrecursionlimit  # a billion frames would end as slow death by memory; this many end as RecursionError
        sys.setrecursionlimit = lambda frames: limit(min(frames, 100_000))
        sys.stdin = open(0, closefd=False, encoding="utf-8", errors="replace")
        status = execute(code, scope)
        threading._shutdown()  # as the interpreter does at its end: wait for threads that are not daemons
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the boundary, again: a script can break sys.stdout, threading or recursion itself
        status = status or EXIT_ERROR
    finally:
        os._exit(status)


# ------------------------------------------------------------------------------------------------------- the server

class Server:
    def __init__(self, control, mas):
        self.control, self.mas, self.poll = control, mas, select.poll()
        self.runs = {}  # id -> [pid, pidfd, deadline or None, started, why it was killed]
        self.by_pidfd = {}
        self.poll.register(control, select.POLLIN)

    def serve(self):
        while True:
            deadlines = [deadline for _, _, deadline, _, _ in self.runs.values() if deadline is not None]
            wait = None if not deadlines else max(0, min(deadlines) - time.monotonic()) * 1000 + 0.5
            for fd, _ in self.poll.poll(wait):
                if fd == self.control.fileno():
                    self.receive()
                else:
                    self.reap(self.by_pidfd[fd])
            now = time.monotonic()
            for name, (_, _, deadline, _, _) in list(self.runs.items()):
                if deadline is not None and deadline <= now:
                    self.kill(name, "timeout")

    def receive(self):
        data, fds, _, _ = socket.recv_fds(self.control, 4096, 8)
        if not data:
            sys.exit(0)  # the parent is gone; PDEATHSIG takes the runs along
        message = json.loads(data)
        if message["op"] == "run":
            self.start(message, fds)
        elif message["id"] in self.runs:
            if message["op"] == "kill":
                self.kill(message["id"], "killed")
            else:  # "clock": set or stop the time that is left
                left = message["left"]
                self.runs[message["id"]][2] = None if left is None else time.monotonic() + left

    def start(self, message, fds):
        try:
            pid = os.fork()
        except OSError as error:  # no more processes: this run fails, the others and the server go on
            for fd in fds:
                os.close(fd)
            return self.report({"id": message["id"], "failed": f"fork: {error.strerror}"})
        if pid == 0:
            try:
                enter_run(fds, message["limits"])
                run(message["kind"], self.mas)
            finally:
                os._exit(99)  # never back into the server's loop
        for fd in fds:
            os.close(fd)
        pidfd, now = os.pidfd_open(pid), time.monotonic()
        self.runs[message["id"]] = [pid, pidfd, now + message["limits"]["wall"], now, None]
        self.by_pidfd[pidfd] = message["id"]
        self.poll.register(pidfd, select.POLLIN)

    def kill(self, name, why):
        run = self.runs[name]
        run[4], run[2] = run[4] or why, None
        os.kill(run[0], signal.SIGKILL)

    def reap(self, name):
        pid, pidfd, _, started, why = self.runs.pop(name)
        self.poll.unregister(pidfd)
        del self.by_pidfd[pidfd]
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        report = {"id": name, "exit": os.waitstatus_to_exitcode(status), "why": why, "seconds": time.monotonic() - started,
                  "cpu": usage.ru_utime + usage.ru_stime}
        self.report(report)

    def report(self, message):
        self.control.sendmsg([json.dumps(message).encode()])


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    level, mas_path = sys.argv[2], sys.argv[3]
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then closes this server in order
    sys.path = [path for path in sys.path if path and path.startswith(sys.base_prefix)]
    import bisect, datetime, decimal, fractions, functools, heapq, itertools, math, random, re, statistics, string  # noqa: E401, F401
    mas = types.ModuleType("mas")
    with open(mas_path) as file:
        exec(compile(file.read(), "mas.py", "exec"), mas.__dict__)
    sys.modules["mas"] = mas
    os.chdir("/")
    drop_privileges()
    if level == "landlock":
        landlock(readable_paths())
    if level != "none":
        install(server_filter())
    gc.collect()
    gc.freeze()
    control.sendmsg([b'{"id": 0, "ready": true}'])
    Server(control, mas).serve()


if __name__ == "__main__":
    main()
