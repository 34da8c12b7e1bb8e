"""Isolation: what the fork server can still see of the machine after it has locked itself in.

Level namespaces: a user, pid, net, mount, ipc and uts namespace of its own, with nothing mounted
but the interpreter, read-only. Level landlock: no capability, and Landlock leaves only reading of
the interpreter.

Source: ours, after landlock(7), user_namespaces(7).

Test: `pytest tests/test_sandbox.py`. Read next: child.py.
"""

import ctypes
import os
import signal
import struct
import sys

from jail.syscalls import NUMBERS

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
NEWNS = 0x20000
NAMESPACES = NEWNS | 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
# (mount, user, pid, net, ipc, uts)
LANDLOCK_CREATE = NUMBERS["landlock_create_ruleset"]
LANDLOCK_ADD = NUMBERS["landlock_add_rule"]
LANDLOCK_RESTRICT = NUMBERS["landlock_restrict_self"]
READ_FILE, READ_DIR = 1 << 2, 1 << 3  # Landlock's rights
PIVOT_ROOT, MOUNT_SETATTR = NUMBERS["pivot_root"], NUMBERS["mount_setattr"]
MS_PRIVATE_RECURSIVE, MS_BIND_RECURSIVE, MS_NOSUID_NODEV = 0x44000, 0x5000, 6


def must(result: int, what: str) -> int:
    """The result of a C call. Raises OSError if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def readable_paths() -> list[str]:
    """What the interpreter needs to import the standard library and its extension modules."""
    paths = {
        os.path.join(sys.base_prefix, "lib"),
        os.path.dirname(os.__file__),
        *("/usr/lib", "/lib", "/lib64"),
        *("/usr/share/zoneinfo", "/etc/localtime"),
        *("/dev/null", "/dev/urandom"),
    }
    return sorted(path for path in paths if os.path.exists(path))


def die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def drop_capabilities() -> None:
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    must(LIBC.capset(header, none), "capset")


def landlock() -> None:
    """Leave only reading, below readable_paths(). Raises OSError where there is no Landlock."""
    abi = must(LIBC.syscall(LANDLOCK_CREATE, None, 0, 1), "Landlock")
    num_rights = min(13 + max(abi - 1, 0), 16 if abi >= 5 else 15)
    filesystem = (1 << num_rights) - 1
    network = 3 if abi >= 4 else 0
    scopes = 3 if abi >= 6 else 0
    size = 8
    if abi >= 4:
        size = 16
    if abi >= 6:
        size = 24
    ruleset = struct.pack("QQQ", filesystem, network, scopes)
    fd = must(LIBC.syscall(LANDLOCK_CREATE, ruleset, size, 0), "Landlock ruleset")
    for path in readable_paths():
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", access, parent)
        must(LIBC.syscall(LANDLOCK_ADD, fd, 1, rule, 0), f"Landlock rule for {path}")
        os.close(parent)
    must(LIBC.syscall(LANDLOCK_RESTRICT, fd, 0), "Landlock restrict")
    os.close(fd)


def namespaces(control_fd: int) -> None:
    """Go on as process 1 of a new world: no network, no other process, and of the files only
    readable_paths(), read-only. The process from before waits outside for its end."""
    uid, gid = os.getuid(), os.getgid()
    sources = {path: os.path.realpath(path) for path in readable_paths()}
    must(LIBC.unshare(NAMESPACES), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    die_with_parent()  # unshare has cleared it
    server = os.fork()
    if server:
        os.close(control_fd)
        _, status = os.waitpid(server, 0)
        os._exit(1 if os.waitstatus_to_exitcode(status) else 0)
    die_with_parent()
    must(LIBC.mount(None, b"/", None, MS_PRIVATE_RECURSIVE, None), "mount --make-rprivate")
    options = b"size=1m,mode=755"
    must(LIBC.mount(b"root", b"/tmp", b"tmpfs", MS_NOSUID_NODEV, options), "mount /tmp")
    os.mkdir("/tmp/.host")
    must(LIBC.syscall(PIVOT_ROOT, b"/tmp", b"/tmp/.host"), "pivot_root")
    os.chdir("/")
    for path, source in sources.items():
        bind(path, source)
    must(LIBC.umount2(b"/.host", 2), "umount")
    os.rmdir("/.host")
    os.makedirs("/tmp", exist_ok=True)  # where each run mounts its own
    read_only = struct.pack("4Q", 3, 0, 0, 0)
    must(LIBC.syscall(MOUNT_SETATTR, -100, b"/", 0x8000, read_only, 32), "mount read-only")


def bind(path: str, source: str) -> None:
    """Show the host's `source` at `path`."""
    if os.path.exists(path):  # it is inside of one that is there already
        return
    is_folder = os.path.isdir("/.host" + source)
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT))
    host = f"/.host{source}".encode()
    must(LIBC.mount(host, path.encode(), None, MS_BIND_RECURSIVE, None), f"bind {path}")
