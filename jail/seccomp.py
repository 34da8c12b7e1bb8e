"""Seccomp filters: which system calls the fork server and its runs may make.

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
from jail.syscalls import AUDIT_CODES, MACHINE, NUMBERS, numbers

# What a Python process with threads needs.
RUN = numbers(
    "read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction "
    "rt_sigprocmask rt_sigreturn pread64 pwrite64 readv writev access pipe select sched_yield "
    "mremap msync mincore madvise dup dup2 pause nanosleep getitimer alarm setitimer getpid exit "
    "wait4 uname fsync fdatasync ftruncate getdents getcwd chdir fchdir readlink umask "
    "gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid getppid getpgrp "
    "getgroups getresuid getresgid getpgid getsid rt_sigpending rt_sigtimedwait sigaltstack "
    "getpriority arch_prctl gettid time futex sched_getaffinity getdents64 set_tid_address "
    "restart_syscall fadvise64 clock_gettime clock_getres clock_nanosleep exit_group epoll_wait "
    "epoll_ctl waitid openat newfstatat readlinkat faccessat pselect6 ppoll set_robust_list "
    "epoll_pwait eventfd2 epoll_create1 dup3 pipe2 getcpu getrandom membarrier statx rseq "
    "close_range faccessat2"
)
# What a scratch directory needs besides.
FILES = numbers("truncate rename mkdir rmdir unlink mkdirat unlinkat renameat renameat2")
# What only the server needs.
SERVER = numbers("kill sendmsg recvmsg setpgid capset setpriority setrlimit seccomp pidfd_open")
MOUNTING = numbers("mount unshare")  # the scratch directory of a run at level namespaces
PRETEND = numbers("chmod fchmod utime utimes futimesat fchmodat utimensat fchmodat2")
IOCTLS = [0x5401, 0x541B, 0x5421, 0x5450, 0x5451]  # TCGETS, FIO*
NOTIFY_RECEIVE, NOTIFY_SEND = 0xC0502100, 0xC0182101
# Locks; SETOWN SETSIG SETOWN_EX SETLEASE NOTIFY SETPIPE_SZ: they kill, or take memory.
FCNTLS_REFUSED = [5, 6, 7, 36, 37, 38, 8, 10, 15, 1024, 1026, 1031]
# MAP_SHARED | MAP_ANONYMOUS: memory that lives on when all but one of its pages are unmapped, which
# no limit counts. /dev/zero, the other way to it, is not to be seen (isolation.py).
SHARED_ANONYMOUS = 0x21
THREAD = 0x10400  # CLONE_THREAD | CLONE_FS ...: flags by which a clone is a thread
TMPFILE = getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | TMPFILE  # flags of an open that is not reading

ALLOW, NOTIFY, KILL_PROCESS = 0x7FFF0000, 0x7FC00000, 0x80000000
SUCCESS, EPERM, EAGAIN, ENOSYS = 0x50000, 0x50001, 0x5000B, 0x50026

# BPF: load a word, keep some of its bits, jump if equal, jump if greater or equal, return.
LOAD, AND, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
X32_NUMBERS = 0x40000000  # of x86-64: the same calls with other numbers


def instruction(code: int, if_true: int, if_false: int, k: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, k)


def rule(calls: list[int], verdict: int) -> list[bytes]:
    """`verdict` for these calls."""
    instructions = []
    for number in calls:
        instructions.append(instruction(IF_EQUAL, 0, 1, number))
        instructions.append(instruction(RETURN, 0, 0, verdict))
    return instructions


def argument_rule(
    name: str, argument: int, values: list[int], verdict: int, otherwise: int, mask=0xFFFFFFFF
) -> list[bytes]:
    """For the call of this name: `verdict` when its argument (low 32 bits, after `mask`) is one of
    `values`, else `otherwise`."""
    if name not in NUMBERS:
        return []
    body = [
        instruction(LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument),
        instruction(AND, 0, 0, mask),
        *rule(values, verdict),
        instruction(RETURN, 0, 0, otherwise),
    ]
    return [instruction(IF_EQUAL, 0, len(body), NUMBERS[name]), *body]


def assemble(rules: list[bytes], default: int) -> bytes:
    head = [
        instruction(LOAD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(IF_EQUAL, 1, 0, AUDIT_CODES[MACHINE]),
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
        files = argument_rule("open", 1, [0], ALLOW, EPERM, WRITES)
        files += argument_rule("openat", 2, [0], ALLOW, EPERM, WRITES)
    rules = [
        *files,
        *rule([*RUN, *SERVER, *numbers("fork tgkill prlimit64 prctl")], ALLOW),
        *rule(PRETEND, SUCCESS),
        *rule(numbers("clone3"), ENOSYS),
        *argument_rule("clone", 0, [THREAD], NOTIFY, ALLOW, mask=THREAD),
        *rule(numbers("vfork"), EAGAIN),
        *argument_rule("ioctl", 1, [*IOCTLS, NOTIFY_RECEIVE, NOTIFY_SEND], ALLOW, EPERM),
        *argument_rule("fcntl", 1, FCNTLS_REFUSED, EPERM, ALLOW),
    ]
    return assemble(rules, EPERM)


def run_filter() -> bytes:
    """What a run loses besides. It may ask for its own limits, which it can't raise without
    capabilities."""
    pr_set_name = 15
    rules = [
        *rule([*SERVER, *MOUNTING, NUMBERS["tgkill"]], EPERM),
        *rule(numbers("fork"), EAGAIN),
        *argument_rule("clone", 0, [THREAD], ALLOW, EAGAIN, mask=THREAD),
        *argument_rule("close_range", 2, [0], ALLOW, EPERM),
        *argument_rule("prctl", 0, [pr_set_name], ALLOW, EPERM),
        *argument_rule("prlimit64", 0, [0], ALLOW, EPERM),
        *argument_rule("mmap", 3, [SHARED_ANONYMOUS], EPERM, ALLOW, mask=SHARED_ANONYMOUS),
    ]
    return assemble(rules, ALLOW)


RUN_FILTER = run_filter()  # once: compiling it for each run would cost time


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program: bytes, flags: int = 0) -> int:
    """Install a filter. With flags=8, returns the descriptor on which it asks."""
    structure = Program(len(program) // 8, program)
    return must(LIBC.syscall(NUMBERS["seccomp"], 1, flags, ctypes.byref(structure)), "seccomp")
