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
