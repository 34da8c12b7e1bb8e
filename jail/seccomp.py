"""Seccomp filters: which system calls the fork server and its runs may make (x86-64).

An allow-list for the server and all that it forks, and a second filter that takes from a run what
only the server needs. Refused calls return EPERM; chmod and utime pretend to succeed; a new process
is EAGAIN, as at any limit of processes. A new thread is asked for: the kernel asks the server
(NOTIFY).

Source: ours, after seccomp(2), seccomp_unotify(2).

Test: `pytest tests/test_sandbox.py`. Read next: isolation.py.
"""

import ctypes
import os
import struct

from jail.isolation import LIBC, must

# What a Python process with threads needs.
RUN = [
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25),
    *(26, 27, 28, 32, 33, 34, 35, 36, 37, 38, 39, 60, 61, 63, 74, 75, 77, 78, 79, 80, 81, 89, 95),
    *(96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 115, 118, 120, 121, 124, 127, 128, 131),
    *(140, 158, 186, 201, 202, 204, 217, 218, 219, 221, 228, 229, 230, 231, 232, 233, 247, 257),
    *(262, 267, 269, 270, 271, 273, 281, 290, 291, 292, 293, 309, 318, 324, 332, 334, 436, 439),
]
# What a scratch directory needs besides: truncate rename mkdir rmdir unlink, and their *at forms.
FILES = [76, 82, 83, 84, 87, 258, 263, 264, 316]
IOCTL, FCNTL, OPEN, OPENAT = 16, 72, 2, 257
CLONE, FORK, VFORK, CLONE3 = 56, 57, 58, 435
KILL, TGKILL, PRCTL, PRLIMIT, SECCOMP, CLOSE_RANGE = 62, 234, 157, 302, 317, 436
# What only the server needs: kill sendmsg recvmsg setpgid capset setpriority setrlimit seccomp
# pidfd_open.
SERVER = [KILL, 46, 47, 109, 126, 141, 160, SECCOMP, 434]
MOUNTING = [165, 272]  # mount unshare: the scratch directory of a run at level namespaces
PRETEND = [90, 91, 132, 235, 261, 268, 280, 452]  # chmod and utime in all their forms
IOCTLS = [0x5401, 0x541B, 0x5421, 0x5450, 0x5451]  # TCGETS, FIO*
NOTIFY_RECEIVE, NOTIFY_SEND = 0xC0502100, 0xC0182101
# Locks; SETOWN SETSIG SETOWN_EX SETLEASE NOTIFY SETPIPE_SZ: they kill, or take memory.
FCNTLS_REFUSED = [5, 6, 7, 36, 37, 38, 8, 10, 15, 1024, 1026, 1031]
THREAD = 0x10400  # CLONE_THREAD | CLONE_FS ...: flags by which a clone is a thread
TMPFILE = getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | TMPFILE  # flags of an open that is not reading

ALLOW, NOTIFY, KILL_PROCESS = 0x7FFF0000, 0x7FC00000, 0x80000000
SUCCESS, EPERM, EAGAIN, ENOSYS = 0x50000, 0x50001, 0x5000B, 0x50026

# BPF: load a word, keep some of its bits, jump if equal, jump if greater or equal, return.
LOAD, AND, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
X86_64, X32_NUMBERS = 0xC000003E, 0x40000000


def instruction(code: int, if_true: int, if_false: int, k: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, k)


def rule(numbers: list[int], verdict: int) -> list[bytes]:
    """`verdict` for these calls."""
    instructions = []
    for number in numbers:
        instructions.append(instruction(IF_EQUAL, 0, 1, number))
        instructions.append(instruction(RETURN, 0, 0, verdict))
    return instructions


def argument_rule(
    number: int, argument: int, values: list[int], verdict: int, otherwise: int, mask=0xFFFFFFFF
) -> list[bytes]:
    """If the call is `number`: `verdict` when its argument (low 32 bits, after `mask`) is one of
    `values`, else `otherwise`."""
    body = [
        instruction(LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument),
        instruction(AND, 0, 0, mask),
        *rule(values, verdict),
        instruction(RETURN, 0, 0, otherwise),
    ]
    return [instruction(IF_EQUAL, 0, len(body), number), *body]


def assemble(rules: list[bytes], default: int) -> bytes:
    head = [
        instruction(LOAD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(IF_EQUAL, 1, 0, X86_64),
        instruction(RETURN, 0, 0, KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_OFFSET),
        instruction(IF_AT_LEAST, 0, 1, X32_NUMBERS),
        instruction(RETURN, 0, 0, KILL_PROCESS),
    ]
    return b"".join([*head, *rules, instruction(RETURN, 0, 0, default)])


def server_filter(level: str) -> bytes:
    """The allow-list of the server and all that it forks. Without clone3, glibc takes clone."""
    if level == "namespaces":
        files = rule(FILES + MOUNTING, ALLOW)
    else:  # reading alone
        files = argument_rule(OPEN, 1, [0], ALLOW, EPERM, WRITES)
        files += argument_rule(OPENAT, 2, [0], ALLOW, EPERM, WRITES)
    rules = [
        *files,
        *rule([*RUN, *SERVER, FORK, TGKILL, PRLIMIT, PRCTL], ALLOW),
        *rule(PRETEND, SUCCESS),
        *rule([CLONE3], ENOSYS),
        *argument_rule(CLONE, 0, [THREAD], NOTIFY, ALLOW, mask=THREAD),
        *rule([VFORK], EAGAIN),
        *argument_rule(IOCTL, 1, [*IOCTLS, NOTIFY_RECEIVE, NOTIFY_SEND], ALLOW, EPERM),
        *argument_rule(FCNTL, 1, FCNTLS_REFUSED, EPERM, ALLOW),
    ]
    return assemble(rules, EPERM)


def run_filter() -> bytes:
    """What a run loses besides. It may ask for its own limits, which it can't raise without
    capabilities."""
    pr_set_name = 15
    rules = [
        *rule([*SERVER, *MOUNTING, TGKILL], EPERM),
        *rule([FORK], EAGAIN),
        *argument_rule(CLONE, 0, [THREAD], ALLOW, EAGAIN, mask=THREAD),
        *argument_rule(CLOSE_RANGE, 2, [0], ALLOW, EPERM),
        *argument_rule(PRCTL, 0, [pr_set_name], ALLOW, EPERM),
        *argument_rule(PRLIMIT, 0, [0], ALLOW, EPERM),
    ]
    return assemble(rules, ALLOW)


RUN_FILTER = run_filter()  # once: compiling it for each run would cost time


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program: bytes, flags: int = 0) -> int:
    """Install a filter. With flags=8, returns the descriptor on which it asks."""
    structure = Program(len(program) // 8, program)
    return must(LIBC.syscall(SECCOMP, 1, flags, ctypes.byref(structure)), "seccomp")
