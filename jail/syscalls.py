"""The numbers of system calls: on x86-64, and on aarch64 (Grace, Docker on Apple silicon).

Source: the kernel's asm/unistd_64.h and asm-generic/unistd.h; the test compares. On aarch64 nobody
has run the sandbox yet.

Test: `pytest tests/test_syscalls.py`. Read next: seccomp.py.
"""

import platform

ARCHITECTURES = ("x86_64", "aarch64")
AUDIT_CODES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # how seccomp calls them

# name, its number on each; "-" where there is no such call
TABLE = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -,
pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232,
madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -,
setitimer 38 103, getpid 39 172, exit 60 93, wait4 61 260, uname 63 160, fsync 74 82,
fdatasync 75 83, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50,
readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165,
sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177,
getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137,
sigaltstack 131 132, getpriority 140 141, arch_prctl 158 -, gettid 186 178, time 201 -,
futex 202 98, sched_getaffinity 204 123, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, waitid 247 95,
openat 257 56, newfstatat 262 79, readlinkat 267 78, faccessat 269 48, pselect6 270 72,
ppoll 271 73, set_robust_list 273 99, epoll_pwait 281 22, eventfd2 290 19, epoll_create1 291 20,
dup3 292 24, pipe2 293 59, getcpu 309 168, getrandom 318 278, membarrier 324 283, statx 332 291,
rseq 334 293, close_range 436 436, faccessat2 439 439, truncate 76 45, rename 82 -, mkdir 83 -,
rmdir 84 -, unlink 87 -, mkdirat 258 34, unlinkat 263 35, renameat 264 38, renameat2 316 276,
kill 62 129, sendmsg 46 211, recvmsg 47 212, setpgid 109 154, capset 126 91, setpriority 141 140,
setrlimit 160 164, seccomp 317 277, pidfd_open 434 434, mount 165 40, unshare 272 97, chmod 90 -,
fchmod 91 52, utime 132 -, utimes 235 -, futimesat 261 -, fchmodat 268 53, utimensat 280 88,
fchmodat2 452 452, ioctl 16 29, fcntl 72 25, clone 56 220, fork 57 -, vfork 58 -, clone3 435 435,
tgkill 234 131, prctl 157 167, prlimit64 302 261, pivot_root 155 41, mount_setattr 442 442,
landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446
"""


def numbers_on(architecture: str) -> dict[str, int]:
    """name -> number."""
    column = 1 + ARCHITECTURES.index(architecture)
    rows = [row.split() for row in TABLE.split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


# Elsewhere only level none works, which makes no filter.
MACHINE = platform.machine() if platform.machine() in ARCHITECTURES else ARCHITECTURES[0]
NUMBERS = numbers_on(MACHINE)


def numbers(names: str) -> list[int]:
    """Of those calls that this machine has.

    >>> [numbers_on("aarch64").get(name) for name in ("read", "open")]
    [63, None]
    """
    return [NUMBERS[name] for name in names.split() if name in NUMBERS]
