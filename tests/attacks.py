"""Attacks of our own: name -> (mode, statuses that are right, code). The harness fills @PPID@,
@PROJ@, @HOME@, @TRUTH@, @PORT@.

mode: script (a program), call (a candidate function `f`, called with no argument), mas (a script
that talks). A script prints ESCAPE when it believes that it got through; the harness finds out
whether it did.

A backslash at the end of a line joins it with the next one.
"""

SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *values):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_void_p(v) if isinstance(v, int) \
else v for v in values])
    return result, ctypes.get_errno()
"""

ATTACKS = {
    "thread_bomb": (
        "script",
        "processes",
        """
import threading, time
threading.stack_size(32768)
while True:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""",
    ),
    "raw_threads": (
        "script",
        "processes|crash",
        SYSCALL
        + """
while True:  # threads without Python's or the C library's knowledge: each clone is asked for, \
whatever it comes to
    call(56, 0x10000 | 0x100 | 0x800 | 0x400, 0)
""",
    ),
    "own_descriptor_tables": (
        "script",
        "ok",
        SYSCALL
        + """
import threading
def more():  # 64 descriptors for each thread, filled with kernel memory, instead of for all of them
    if call(436, 4, 0xFFFFFFFF, 2)[0] == 0: print("ESCAPE:table")
for _ in range(20):
    t = threading.Thread(target=more); t.start(); t.join()
if call(56, 0x10000 | 0x100 | 0x800, 0)[0] >= 0: print("ESCAPE:clone")
""",
    ),
    "locks": (
        "script",
        "ok",
        """
import fcntl, os
fd = os.open(os.__file__, os.O_RDONLY)  # a lock on a shared file is seen by other runs, \
and costs memory that nobody counts
for operation in (fcntl.LOCK_SH, fcntl.LOCK_EX):
    for lock in (fcntl.flock, fcntl.lockf):
        try: lock(fd, operation | fcntl.LOCK_NB); print("ESCAPE:lock")
        except OSError: pass
""",
    ),
    "raw_fork": (
        "script",
        "ok",
        SYSCALL
        + """
for number, values in ((57, ()), (58, ()), (56, (17,)), (56, (0x4111,)), (435, (0, 0))):
    result, error = call(number, *values)
    if result >= 0:
        print("ESCAPE:process", number, flush=True)
        os._exit(0)
""",
    ),
    "plain_fork": ("script", "processes", "import os; os.fork()"),
    "subprocess": ("script", "processes", "import subprocess; subprocess.run(['/bin/true'])"),
    "multiprocessing": (
        "script",
        "processes|error",
        "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    ),
    "x32_calls": ("script", "crash", SYSCALL + "call(0x40000000 + 39); print('ESCAPE:x32')"),
    "int80_calls": (
        "script",
        "crash",
        """
import ctypes, mmap  # the 32-bit door to the kernel: getpid by int 0x80
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print("ESCAPE:int80", ctypes.CFUNCTYPE(ctypes.c_int)(address)())
""",
    ),
    "many_calls_refused": (
        "script",
        "ok",
        SYSCALL
        + """
refused = dict(socket=41, socketpair=53, connect=42, bind=49, execve=59, execveat=322, \
ptrace=101, readv=310, writev=311, kill=62, tkill=200,
               sigqueue=129, tgsigqueue=297, pidfd_open=434, pidfd_getfd=438, pidfd_send=424, \
setns=308, unshare=272, mount=165, umount=166,
               pivot_root=155, chroot=161, open_tree=428, fsopen=430, mount_setattr=442, \
keyctl=250, add_key=248, bpf=321, perf=298, io_uring=425,
               userfaultfd=323, memfd=319, memfd_secret=447, shmget=29, semget=64, \
msgget=68, mq_open=240, inotify=294, fanotify=300, timer=222,
               setuid=105, setgid=106, capset=126, setpriority=141, ioprio=251, affinity=203, \
scheduler=144, seccomp=317, landlock=444,
               mlockall=151, swapon=167, reboot=169, sethostname=170, module=175, iopl=172, \
acct=163, quotactl=179, handle=304,
               process_madvise=440, kcmp=312, name_to_handle=303, sendmsg=46, recvmsg=47, \
setrlimit=160, vmsplice=278, syslog=103, chown=92,
               setxattr=188, mknod=133, symlink=88, link=86, personality=135, clock_settime=227, \
settimeofday=164, adjtimex=159)
for name, number in refused.items():
    result, error = call(number, 0, 0, 0, 0, 0, 0)
    if (result, error) != (-1, 1):
        print("ESCAPE:call", name, result, error)
""",
    ),
    "memfd_memory": (
        "script",
        "ok|error",
        """
import os
try:
    fd = os.memfd_create("x")
    for _ in range(600): os.write(fd, bytes(1 << 20))
    print("ESCAPE:memfd")
except OSError as error: print(error)
""",
    ),
    "scratch_full": (
        "script",
        "files|error",
        "with open('big', 'wb', buffering=0) as f:\n"
        "    for _ in range(100): f.write(bytes(1 << 20))\n"
        "print('ESCAPE:disk')",
    ),
    "scratch_inodes": (
        "script",
        "files|error",
        "for i in range(50_000): open(str(i), 'w').close()\nprint('ESCAPE:inodes')",
    ),
    "scratch_mapped": (
        "script",
        "crash|files|error",
        """
import mmap, os
fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 15 << 20)
for i in range(4):
    other = os.open(f"more{i}", os.O_RDWR | os.O_CREAT)
    os.ftruncate(other, 15 << 20)
    view = mmap.mmap(other, 15 << 20)
    for place in range(0, 15 << 20, 4096): view[place] = 1
print("ESCAPE:mapped")
""",
    ),
    "too_many_files_open": (
        "script",
        "files|error",
        "held = [open('/dev/null') for _ in range(10_000)]\nprint('ESCAPE:descriptors')",
    ),
    "climb": (
        "script",
        "ok",
        """
import os
for path in ("../" * 30 + "etc/shadow", "/proc/self/environ", "/proc/self/root@TRUTH@", \
"/proc/@PPID@/environ", "/proc/1/environ", "@TRUTH@",
             "@HOME@/.bashrc", "@PROJ@/keep.txt", "/etc/passwd", "/dev/mem", \
"/dev/vda", "/sys/kernel/notes"):
    for flags in (os.O_RDONLY, os.O_PATH, os.O_WRONLY | os.O_CREAT):
        try:
            fd = os.open(path, flags)
            print("ESCAPE:open" if flags != os.O_PATH else "path only", path, \
os.read(fd, 60) if flags == os.O_RDONLY else "")
        except OSError: pass
""",
    ),
    "output_games": (
        "script",
        "ok|error|output",
        """
import os
for fd in (0, 1, 2):
    for attempt in (lambda: os.ftruncate(fd, 1 << 40), lambda: os.pwrite(fd, b"x", 1 << 40), \
lambda: os.write(fd, bytes(8 << 20)),
                    lambda: os.lseek(fd, 1 << 62, 0), lambda: os.posix_fallocate(fd, 0, 1 << 40)):
        try: attempt()
        except OSError: pass
""",
    ),
    "rewrite_code": (
        "script",
        "ok|error",
        "import os\n"
        "os.lseek(0, 0, 0)\n"
        "try:\n"
        "    os.write(0, b'x' * (64 << 20)); print('ESCAPE:source')\n"
        "except OSError as e: print(e)",
    ),
    "servers_objects": (
        "script",
        "any",
        """
import gc, sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_locals.items()):
        if hasattr(value, "control"):
            print("runs", list(value.runs))
            try: value.control.sendmsg([b'{"id": 1, "exit": 0, "why": null, \
"seconds": 0, "cpu": 0}']); print("ESCAPE:report")
            except OSError as error: print(error)
    frame = frame.f_back
print(len([o for o in gc.get_objects() if "TRUTH" + "CANARY" in repr(o)[:1000]]))
""",
    ),
    "no_exit": (
        "script",
        "any",
        "import os, threading\n"
        "os._exit = lambda *a: None\n"
        "threading._shutdown = lambda: None\n"
        "print('back')",
    ),
    "deaf_to_limits": (
        "script",
        "cpu|timeout",
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    ),
    "signal_storm": (
        "script",
        "any",
        """
import signal
signal.signal(signal.SIGALRM, lambda *_: signal.setitimer(signal.ITIMER_REAL, 1e-6))
signal.setitimer(signal.ITIMER_REAL, 1e-6)
while True: pass
""",
    ),
    "endless_str": (
        "script",
        "timeout|cpu",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    ),
    "broken_str": (
        "script",
        "error",
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
    ),
    "huge_error": ("script", "memory|output|error", "raise ValueError('x' * (200 << 20))"),
    "broken_streams": (
        "script",
        "error",
        "import sys\nsys.stdout = sys.stderr = None\nraise ValueError",
    ),
    "flush_for_ever": (
        "script",
        "timeout|cpu",
        "import sys\n"
        "class S:\n"
        "    def write(self, x): pass\n"
        "    def flush(self):\n"
        "        while True: pass\n"
        "sys.stdout = S()",
    ),
    "nested_source": ("script", "invalid|memory|crash", "(" * 200_000),
    "nested_eval": ("script", "memory|crash|error", "eval('-' * 5_000_000 + '1')"),
    "exit_code_lies": ("script", "any", "import os; os._exit(97)"),
    "frames": (
        "script",
        "memory|error|crash|timeout|cpu",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
    ),
    "gc_bomb": (
        "script",
        "memory|timeout|cpu",
        "class N:\n    def __del__(self): keep.append(N())\nkeep = []\nwhile True: N()",
    ),
    "signals_by_descriptor": (
        "script",
        "ok",
        """
import fcntl, os, signal, struct
r, w = os.pipe()  # the kernel would kill the trainer when the pipe becomes readable: \
no kill(2) needed
for pid in (@PPID@, os.getppid(), 1):
    for number, value in ((8, pid), (10, int(signal.SIGKILL)), (15, struct.pack("ii", 1, pid))):  \
# SETOWN SETSIG SETOWN_EX
        try: fcntl.fcntl(r, number, value); print("ESCAPE:owner", number)
        except OSError: pass
    try: fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError: pass
    os.write(w, b"x")
""",
    ),
    "nice_and_bind": (
        "script",
        "ok",
        """
import os
for attempt in (lambda: os.nice(-10), lambda: os.setpriority(os.PRIO_PROCESS, @PPID@, 19), \
lambda: os.sched_setaffinity(@PPID@, {0}),
                lambda: os.setpriority(os.PRIO_USER, 0, 19)):
    try: attempt(); print("ESCAPE:priority")
    except OSError: pass
""",
    ),
    "ask_for_ever": ("mas", "messages", "a = Agent('a', 'b')\nwhile True: a('x')"),
    "stalled_line": (
        "mas",
        "timeout",
        'import os, time\nos.write(3, b\'{"op": "ask"\')\ntime.sleep(1e6)',
    ),
    "nine_levels": (
        "mas",
        "protocol",
        "import os\nos.write(3, b'{\"a\": [[[[[[[[[[1]]]]]]]]]]}\\n')\nwhile True: pass",
    ),
    "wide_message": (
        "mas",
        "protocol",
        "import os\nos.write(3, b'[' + b'{},' * 300_000 + b'0]\\n')\nwhile True: pass",
    ),
    "not_json": (
        "mas",
        "protocol",
        'import os\nos.write(3, b\'{"op": "ask", "op": Infinity}\\n\')\nwhile True: pass',
    ),
    "burst_and_exit": (
        "mas",
        "protocol|ok|error",
        'import os\nos.write(3, b\'{"op": "ask", "asks": []}\\n\' * 5000)\nos._exit(0)',
    ),
    "hang_up": ("mas", "ok|timeout", "import os\nos.close(3)"),
    "stolen_reply": (
        "mas",
        "protocol|error",
        "mas = __import__('mas')\nmas._request({'op': 'submit', 'reply': 10**9})",
    ),
    "endless_items": (
        "call",
        "ok",
        "class D(dict):\n    def items(self):\n        while True: yield 1, 2\ndef f(): return D()",
    ),
    "evil_class": (
        "call",
        "ok",
        "class X(int):\n"
        "    __class__ = property(lambda s: 1 / 0)\n"
        "    def __eq__(self, o): return True\n"
        "def f(): return X(3)",
    ),
    "more_results": (
        "call",
        "ok",
        "import os\nos.write(3, b'{\"value\": 42}\\n' * 50)\ndef f(): return 1",
    ),
    "deep_result": (
        "call",
        "ok",
        "def f():\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    ),
    "wide_result": ("call", "ok|output|error|memory", "def f(): return ['x' * 1000] * 50_000"),
    "raw_result": (
        "call",
        "any",
        "import os\n"
        "os.write(3, b'[' * 100_000 + b'\\n{\"value\": NaN}\\n\\xff\\n')\n"
        "def f(): return float('inf')",
    ),
}

# What is mapped, spread over addresses; `page(protection)` is one page.
MEMORY = (
    SYSCALL
    + """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, \
ctypes.c_int, ctypes.c_long]
def page(protection=3, size=4096, flags=0x22):
    return libc.mmap(None, size, protection, flags, -1, 0)
"""
)

# The kernel's corners: each is contained by the limits, or refused.
ATTACKS |= {
    "first_thread_gone": (
        "script",
        "cpu|timeout",
        SYSCALL
        + """
import threading
def on():
    while True: pass
threading.Thread(target=on).start()
call(60, 0)  # only this thread ends: a process without its first, whose clock has to run out
""",
    ),
    "every_thread_gone": ("script", "any", SYSCALL + "call(60, 0)"),
    "robust_list_in_a_circle": (
        "script",
        "ok|crash",
        MEMORY
        + """
import struct, threading
at = page()
ctypes.memmove(at, struct.pack("QqQ", at, 1 << 33, at + (1 << 40)), 24)
def end_badly(): call(273, at, 24)  # the kernel walks the list when the thread ends
for _ in range(30):
    t = threading.Thread(target=end_badly); t.start(); t.join()
""",
    ),
    "sleeping_makers": (
        "script",
        "timeout|cpu|crash|processes",
        MEMORY
        + """
at, stack = page(7), page(3, 1 << 16) + (1 << 15)
flags = 0x10F00 | 0x40000 | 0x4000  # a thread, whose maker sleeps until it lets the memory go
code = b"\\xb8\\x38\\0\\0\\0\\xbf" + flags.to_bytes(4, "little") + b"\\x48\\xbe" \
+ stack.to_bytes(8, "little") + bytes.fromhex("31d24d31d24d31c00f05ebfe")
ctypes.memmove(at, code, len(code))
ctypes.CFUNCTYPE(ctypes.c_long)(at)()
""",
    ),
    "barriers": (
        "script",
        "cpu|timeout",
        SYSCALL
        + """
import threading
threading.stack_size(65536)
def storm():
    while True:
        for command in (1, 2, 4, 8, 16, 32, 64, 128): call(324, command, 0, 0)
for _ in range(50): threading.Thread(target=storm, daemon=True).start()
storm()
""",
    ),
    "shared_memory_let_go": (
        "script",
        "ok|memory|error",
        MEMORY
        + """
for _ in range(8):  # all but one page of each is unmapped: what is left counts 4 kB
    at = page(3, 64 << 20, 0x21)
    if at in (None, 2**64 - 1): break
    ctypes.memset(at, 1, 64 << 20)
    libc.munmap(ctypes.c_void_p(at + 4096), (64 << 20) - 4096)
    print("ESCAPE:shared")
""",
    ),
    "shared_memory_by_device": (
        "script",
        "ok|error",
        """
import mmap, os
for name in ("/dev/zero", "/dev/shm/x", "/dev/mem", "/dev/kmsg", "/dev/full"):
    try: mmap.mmap(os.open(name, os.O_RDWR | os.O_CREAT), 1 << 20); print("ESCAPE:device", name)
    except (OSError, ValueError): pass
""",
    ),
    "far_pages": (
        "script",
        "any",
        MEMORY
        + """
for i in range(2_000):  # each with page tables of its own
    libc.mmap((1 << 33) + (i << 30), 4096, 3, 0x100022, -1, 0)
    call(28, (1 << 33) + (i << 30), 4096, 102)
""",
    ),
    "poisoned_pages": (
        "script",
        "ok|crash",
        MEMORY
        + """
at = page()
for advice in (100, 101, 12, 13, 14, 20, 21, 25):
    result, error = call(28, at, 4096, advice)
    if result == 0 and advice in (100, 101): print("ESCAPE:poison", advice)
""",
    ),
    "memory_calls_refused": (
        "script",
        "ok",
        SYSCALL
        + """
refused = dict(mbind=237, migrate_pages=256, move_pages=279, mlock=149, mlock2=325, \
remap_file_pages=216, process_vm_readv=310, process_vm_writev=311, pkey_alloc=330, uselib=134, \
modify_ldt=154, kexec=246, io_setup=206, cachestat=451, set_mempolicy=238, shmat=30, \
landlock=445, memfd=319, futex_waitv=449, mseal=462)
for name, number in refused.items():
    if call(number, 0, 0, 0, 0, 0, 0)[0] >= 0: print("ESCAPE:call", name)
""",
    ),
    "own_thread_state": (
        "script",
        "ok|crash",
        SYSCALL
        + """
call(218, 8)  # set_tid_address: where the kernel writes when the thread ends
call(334, 64, 32, 0, 0x53053053)  # rseq
call(158, 0x1012, 0)  # arch_prctl: cpuid faults
print("alive")
""",
    ),
    "lost_registers": ("script", "crash", SYSCALL + "call(158, 0x1002, 8)\nprint('still here')"),
    "code_overwritten": (
        "script",
        "crash",
        MEMORY
        + """
at = ctypes.cast(libc.getpid, ctypes.c_void_p).value & ~4095
libc.mprotect(ctypes.c_void_p(at), 4096, 7)
ctypes.memset(at, 0xCC, 4096)  # breakpoints, which would stop a process that is traced
libc.getpid()
""",
    ),
    "small_signal_stack": (
        "script",
        "crash|memory|error",
        SYSCALL
        + """
import signal, struct
stack = ctypes.create_string_buffer(2048)
call(131, struct.pack("QiQ", ctypes.addressof(stack), 0, 2048), 0)
libc.signal(11, ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda n: 1 / 0))
ctypes.string_at(8)
""",
    ),
    "deaf_and_asleep": (
        "script",
        "timeout",
        """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: signal.pause()
""",
    ),
    "stopped": (
        "script",
        "ok|error|timeout",
        """
import os, signal
for attempt in (lambda: signal.raise_signal(signal.SIGSTOP), lambda: os.kill(0, signal.SIGSTOP), \
lambda: os.killpg(0, signal.SIGKILL)):
    try: attempt()
    except OSError: pass
""",
    ),
    "process_options": (
        "script",
        "ok",
        SYSCALL
        + """
for option in (1, 4, 8, 22, 23, 24, 28, 35, 36, 38, 41, 47, 53, 0x59616D61, 0x53564D41):
    if call(157, option, 0, 0, 0, 0)[0] == 0: print("ESCAPE:prctl", option)
""",
    ),
    "limits_of_others": (
        "script",
        "ok",
        SYSCALL
        + """
import resource
for pid in (@PPID@, 1, os.getppid()):
    for limit in range(16):
        if call(302, pid, limit, (ctypes.c_ulong * 2)(1, 1), 0)[0] == 0: print("ESCAPE:limit", pid)
for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
    try: resource.setrlimit(limit, (1 << 40, 1 << 40)); print("ESCAPE:raised", limit)
    except (OSError, ValueError): pass
""",
    ),
    "polls_in_a_circle": (
        "script",
        "ok|error|files",
        """
import select
polls = [select.epoll() for _ in range(30)]
for one in polls:
    for other in polls:
        try: one.register(other.fileno(), select.EPOLLIN)
        except OSError: pass
for one in polls: one.poll(0)
""",
    ),
    "full_pipes": (
        "script",
        "ok|error|files",
        """
import os
for _ in range(40):
    r, w = os.pipe()
    os.set_blocking(w, False)
    try:
        while True: os.write(w, bytes(65536))
    except BlockingIOError: pass
""",
    ),
    "timers_of_all_kinds": (
        "script",
        "ok|error|crash|timeout|cpu",
        """
import signal
for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    signal.setitimer(which, 1e-6, 1e-6)
while True: pass
""",
    ),
    "waiters": (
        "script",
        "timeout|cpu",
        SYSCALL
        + """
import threading
threading.stack_size(65536)
word = ctypes.c_int(0)
def wait(): call(202, ctypes.addressof(word), 128, 0, 0, 0, 0)
for _ in range(40): threading.Thread(target=wait).start()
""",
    ),
    "names_that_are_not": (
        "script",
        "ok|timeout|cpu",
        """
import os, time
end, folder, n = time.monotonic() + 0.5, os.path.dirname(os.__file__), 0
while time.monotonic() < end:  # each leaves an entry in the kernel's cache of names
    os.path.exists(f"{folder}/{n:0240d}"); n += 1
""",
    ),
}

# Files, streams and the interpreter.
ATTACKS |= {
    "mapped_output": (
        "script",
        "ok|output|error",
        """
import fcntl, mmap, os
for fd in (1, 2):
    for seal in (0x1, 0x2, 0x4, 0x8, 0x10, 0x20):
        try: fcntl.fcntl(fd, 1033, seal); print("ESCAPE:seal")
        except OSError: pass
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    size = os.fstat(fd).st_size
    mmap.mmap(fd, size)[:] = b"x" * size
    for place in (size, size - 1, 1 << 62):
        try: os.lseek(fd, place, os.SEEK_SET); os.write(fd, b"y" * 9000)
        except OSError: pass
""",
    ),
    "output_of_holes": (
        "script",
        "output",
        "import os\nos.lseek(1, 65535, 0)\nos.write(1, b'x')\nos.lseek(2, 65535, 0)",
    ),
    "swapped_streams": (
        "script",
        "any",
        "import os\nos.dup2(0, 9); os.dup2(1, 0); os.dup2(9, 1)\nos.closerange(0, 64)\nprint(1)",
    ),
    "pretended_modes": (
        "script",
        "ok|error",
        """
import os
for path in ("@TRUTH@", "@PROJ@", "@HOME@/.bashrc", "/etc", "/tmp"):
    for attempt in (lambda: os.chmod(path, 0o777), lambda: os.utime(path, (0, 0)), \
lambda: os.chown(path, 0, 0), lambda: os.rename(path, path + ".x"), lambda: os.unlink(path), \
lambda: os.truncate(path, 0), lambda: os.link(path, "/tmp/x"), lambda: os.symlink(path, "/tmp/y"), \
lambda: os.mkdir(path + "/d"), lambda: os.removexattr(path, "user.x")):
        try: attempt()
        except OSError: pass
""",
    ),
    "nameless_file": (
        "script",
        "any",
        """
import os
for folder in (os.path.dirname(os.__file__), "/", "@HOME@", "/dev/shm"):
    try: fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600); print("ESCAPE:nameless", folder)
    except OSError: pass
""",
    ),
    "scratch_tangle": (
        "script",
        "any",
        """
import os
os.makedirs("/tmp/" + "a/" * 300)
for attempt in (lambda: os.rename("/tmp/a", "/tmp/a/a/b"), lambda: os.rmdir("/tmp"), \
lambda: os.rename("/tmp", "/x"), lambda: os.truncate("/tmp/a", 1 << 50), \
lambda: os.posix_fallocate(os.open("/tmp/f", os.O_CREAT | os.O_RDWR), 0, 1 << 40)):
    try: attempt()
    except OSError: pass
""",
    ),
    "tables_of_the_kernel": (
        "script",
        "ok",
        """
import os
for path in ("/proc/self/mem", "/proc/self/maps", "/proc/self/oom_score_adj", \
"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/kallsyms", "/proc/@PPID@/mem", \
"/proc/@PPID@/fd/1", "/sys/fs/cgroup/cgroup.procs", "/proc/@PPID@/maps", "/dev/tty", "/dev/ptmx"):
    for mode in ("rb", "r+b"):
        try:
            with open(path, mode, 0) as file: print("ESCAPE:table", path, file.read(20))
        except OSError: pass
""",
    ),
    "one_power": ("script", "timeout|cpu|memory", "9 ** 9 ** 9 ** 9"),
    "one_match": ("script", "timeout|cpu", "import re\nre.match('(a+)+$', 'a' * 50 + 'b')"),
    "many_digits": (
        "script",
        "timeout|cpu",
        "import sys\nsys.set_int_max_str_digits(0)\nint('7' * 30_000_000)",
    ),
    "constant_folded": ("script", "any", "x = ('a' * 4096 * 4096 * 4096 * 64)"),
    "deep_data": (
        "script",
        "any",
        "import ast, json, pickle, copy\nx = []\nfor _ in range(100_000): x = [x]\n"
        "for f in (repr, json.dumps, pickle.dumps, copy.deepcopy, hash):\n"
        "    try: f(x)\n    except Exception: pass\nast.parse('[' * 5000)",
    ),
    "exit_hooks": (
        "script",
        "any",
        "import atexit, threading\nloop = lambda: [None for _ in iter(int, 1)]\n"
        "atexit.register(loop)\nthreading._register_atexit(loop)",
    ),
    "slow_switches": (
        "script",
        "timeout|cpu",
        "import sys, threading\nsys.setswitchinterval(1e9)\n"
        "def on():\n    while True: pass\n"
        "for _ in range(20): threading.Thread(target=on, daemon=True).start()\non()",
    ),
    "dying_words": (
        "script",
        "any",
        "import faulthandler\nfaulthandler.dump_traceback_later(0.1, repeat=True)\n"
        "faulthandler._sigabrt()",
    ),
    "no_frames_left": (
        "script",
        "any",
        "import sys\nsys.settrace(lambda *a: sys.exit(3))\nsys.setprofile(lambda *a: 1 / 0)",
    ),
    "patched_interpreter": (
        "script",
        "any",
        "import builtins, sys\nfor name in list(vars(builtins)):\n"
        "    if not name.startswith('_'): delattr(builtins, name)\nsys.modules.clear()",
    ),
}

# Messages and results that are nearly right.
LINE = """
import json, os
def say(message):
    is_raw = type(message) is bytes
    os.write(3, message if is_raw else json.dumps(message).encode() + b'\\n')
"""
ASK = """
ask = dict(agent=0, name='a', instructions='b', tools=[], memory=False, max_turns=2, text='t')
"""
WAIT = "\nwhile True: pass"
ATTACKS |= {
    "nearly_a_number": (
        "mas",
        "protocol|timeout",
        LINE + "a = Agent('a', 'b')\na('x')\nsay({'op': 'submit', 'reply': -1})" + WAIT,
    ),
    "a_number_too_long": (
        "mas",
        "protocol",
        LINE + "say(b'{\"op\": \"submit\", \"reply\": ' + b'9' * 100_000 + b'}\\n')" + WAIT,
    ),
    "sixteen_bits": (
        "mas",
        "protocol",
        LINE + "say(json.dumps({'op': 'ask'}).encode('utf-16-be') + b'\\0\\n')" + WAIT,
    ),
    "half_characters": (
        "mas",
        "protocol",
        LINE + "say(b'{\"op\": \"' + b'\\xed\\xa0\\x80' * 300_000 + b'\"}\\n')" + WAIT,
    ),
    "a_megabyte_of_spaces": (
        "mas",
        "protocol",
        LINE + "b = b' ' * 1_000_000 + b'\\n'\nwhile b: b = b[os.write(3, b):]" + WAIT,
    ),
    "keys_twice": (
        "mas",
        "protocol|timeout|messages",
        LINE + 'say(b\'{"op": "submit", "op": "ask", "asks": [], "asks": 7}\\n\')' + WAIT,
    ),
    "two_at_once": (
        "mas",
        "ok",
        LINE + ASK + "say({'op': 'ask', 'asks': [ask]}); say({'op': 'submit', 'reply': 0})" + WAIT,
    ),
    "many_mouths": (
        "mas",
        "any",
        "import threading\na = Agent('a', 'b')\n"
        "def on():\n    while True: a('x' * 10_000)\n"
        "for _ in range(10): threading.Thread(target=on, daemon=True).start()\non()",
    ),
    "never_reads": (
        "mas",
        "any",
        LINE + ASK + "ask['text'] = 'x' * 100_000\nfor _ in range(40): "
        "say({'op': 'ask', 'asks': [ask]})" + WAIT,
    ),
    "leaves_at_once": ("mas", "any", LINE + "say(b'{\"op\"')\nos._exit(0)"),
    "results_in_a_hole": (
        "call",
        "any",
        "import os\nos.lseek(3, (4 << 20) - 20, 0); os.write(3, b'{\"value\": 1}\\n')\n"
        "for place in (1 << 62, 3):\n    try: os.lseek(3, place, 0)\n    except OSError: pass\n"
        "def f(): return 2",
    ),
    "results_of_line_ends": (
        "call",
        "any",
        "import os\nfor text in (b'\\n', b'7\\n', b'{\"value\": '):\n"
        "    os.lseek(3, 0, 0); os.write(3, text * 400_000)\ndef f(): return 1",
    ),
    "patched_driver": (
        "call",
        "any",
        "import json, os, builtins\njson.dumps = lambda *a: '{\"value\": 42}'\n"
        "builtins.eval = lambda *a: (lambda *b: 42)\nos.write = lambda *a: None\ndef f(): return 1",
    ),
    "result_that_changes": (
        "call",
        "any",
        "class L(list):\n    def __iter__(self):\n        while True: yield L()\n"
        "def f(): return [L([1]), {1: L([2])}, (L(),)]",
    ),
    "no_result_channel": ("call", "any", "import os\nos.close(3)\ndef f(): return 1"),
    "result_names_a_type": (
        "call",
        "ok",
        "def f(): return {'set': [1], 'dict': [[[], []]], 'bytes': '\\u20ac', 'float': 'x'}",
    ),
}
