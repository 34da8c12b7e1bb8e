"""The sandbox: every limit gives its own outcome, attacks are contained, the protocol is checked,
nothing is left behind."""

import asyncio
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SHARED, needs_shared

import sandbox as module
from benchmarks.code_grading import call, encode
from lib.errors import ProtocolError, SandboxError
from sandbox import MAX_MESSAGE_BYTES, Limits, Sandbox, parse_message

pytestmark = pytest.mark.alone


def works(level):
    async def go():
        async with Sandbox(level):
            return None

    try:
        return asyncio.run(go())
    except SandboxError as error:
        return str(error)


UPPER = [
    pytest.param(level, marks=pytest.mark.skipif(bool(why), reason=str(why)))
    for level in ("namespaces", "landlock")
    for why in [works(level)]
]
both_levels = pytest.mark.parametrize("level", UPPER)


def run(code, stdin=b"", level="auto", **limits):
    async def go():
        async with Sandbox(level) as sandbox:
            return await sandbox.run(code, stdin, Limits(**limits))

    return asyncio.run(go())


@pytest.mark.parametrize(
    "code, status, stdout",
    [
        ("print(6 * 7)", "ok", "42\n"),
        ("1 / 0", "error", ""),
        ("def f(:", "invalid", ""),
        ("raise SystemExit", "ok", ""),
        ("raise SystemExit(3)", "error", ""),
        ("import os; os._exit(0)", "ok", ""),
        ("import os; os.abort()", "crash", ""),
        ("while True: pass", "timeout", ""),
        ("import time; time.sleep(60)", "timeout", ""),
        ("x = 'x' * (1 << 31)", "memory", ""),
        (
            "from mmap import *\nheld = [mmap(-1, 64 << 20, flags=MAP_PRIVATE) for _ in range(9)]",
            "memory",
            "",
        ),
        ("import sys\nwhile True: sys.stdout.write('x' * 1000)", "output", "x" * 5000),
        ("import os; os.fork()", "processes", ""),
        (
            "import threading, time\n"
            "for _ in range(9): "
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "processes",
            "",
        ),
        ("held = [open('/dev/null') for _ in range(99)]", "files", ""),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
            "timeout",
            "",
        ),
        (
            "import threading; t = threading.Thread(target=print, args=('hi',)); "
            "t.start(); t.join()",
            "ok",
            "hi\n",
        ),
        ("print(input())", "ok", "first\n"),
        ("import sys; print(len(sys.stdin.read()))", "ok", "13\n"),
        ("import json, math, re, collections, random; print(math.pi)", "ok", "3.141592653589793\n"),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n    b: 'int'\nprint(A(1))",
            "ok",
            "A(b=1)\n",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
@both_levels
def test_outcomes(code, status, stdout, level):
    outcome = run(
        code, b"first\nsecond\n", level, wall=1.0, memory=256 << 20, output=5000, threads=8
    )
    assert (outcome.status, outcome.stdout) == (status, stdout), outcome
    assert outcome.level == level and outcome.seconds < 1.5


def test_cpu_time_has_its_own_outcome():
    assert run("while True: pass", wall=20, cpu=1).status == "cpu"
    assert (
        run("import time\nwhile time.process_time() < 0.6: pass", wall=20, cpu=0.5).status == "cpu"
    )  # the kernel counts whole seconds, we don't
    deaf = run(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        wall=20,
        cpu=1,
    )
    assert deaf.status == "cpu" and deaf.cpu < 1.5


@pytest.mark.parametrize(
    "code", ["open('a', 'w').write('x' * 70_000)", "for i in range(50): open(str(i), 'w')"]
)
def test_the_scratch_directory_has_its_own_outcome(code):
    if why := works("namespaces"):
        pytest.skip(why)
    assert run(code, level="namespaces", scratch=65536, files=20).status == "files"
    assert (
        run(
            "open('a', 'w').write('x' * 60_000); print(open('/tmp/a').read()[:3])",
            level="namespaces",
            scratch=65536,
            files=20,
        ).stdout
        == "xxx\n"
    )


def test_every_run_starts_afresh():
    async def go():
        async with Sandbox() as sandbox:
            first = await sandbox.run(
                "import os, random, builtins\n"
                "builtins.left = 1\n"
                "try: open('left', 'w')\n"
                "except OSError: pass\n"
                "print(random.random())"
            )
            return first, await sandbox.run(
                "import os, random, builtins\n"
                "print(random.random())\n"
                "print(hasattr(builtins, 'left'), os.path.exists('left'))"
            )

    first, second = asyncio.run(go())
    assert second.stdout == first.stdout + "False False\n"  # and draws the same numbers


def test_a_wide_tree_of_threads_is_one_run():
    """The limit counts a run's own threads, also those that threads start, and no other run's."""
    code = (
        "import threading\n"
        "def more(n):\n"
        "    if n: t = threading.Thread(target=more, args=(n - 1,)); t.start(); t.join()\n"
        "more({})\n"
        "print('done')"
    )

    async def go():
        async with Sandbox() as sandbox:
            return await asyncio.gather(
                *(sandbox.run(code.format(n), limits=Limits(threads=10)) for n in [9] * 20 + [12])
            )

    *fine, over = asyncio.run(go())
    assert {outcome.stdout for outcome in fine} == {"done\n"} and over.status == "processes"


def test_tracebacks_show_the_scripts_own_frames():
    text = run("def f():\n    return 1 / 0\nf()").stderr
    assert "return 1 / 0" in text and "ZeroDivisionError" in text and "jail" not in text


def test_runs_give_way_to_their_killing():
    """Without it, 64 busy loops hold up the server that ends them by seconds."""
    assert run("import os; print(os.getpriority(os.PRIO_PROCESS, 0))").stdout == "5\n"


def test_a_run_has_its_own_descriptors_and_no_other():
    """Also where the parent holds many: the server's own line must not be among them, or a run
    could report its own end."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    try:
        code = (
            "import os\n"
            "for fd in range(400):\n"
            "    try: os.fstat(fd); print(fd)\n"
            "    except OSError: pass"
        )
        assert run(code).stdout.split() == ["0", "1", "2"]
    finally:
        for fd in held:
            os.close(fd)


def test_nobodys_limits_can_be_changed():
    code = f"""
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
# an address whose low half is zero
place = libc.mmap(ctypes.c_void_p(1 << 32), 4096, 3, 0x32, -1, 0)
for pid in ({os.getpid()}, 1):
    print(libc.syscall(302, pid, 4, ctypes.c_void_p(place), None), ctypes.get_errno())
try:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
except (ValueError, OSError):
    print("refused")
"""
    assert run(code).stdout.splitlines() == ["-1 1", "-1 1", "refused"]


def talk(script, answer=lambda message: {}, limits=Limits(wall=1.0), count=1):
    """Run a MAS script; `answer` answers each message. Returns [(messages, outcome)]."""

    async def one(sandbox):
        session = await sandbox.talk(script, {"question": "q"}, limits)
        messages = []
        try:
            while (message := await session.receive()) is not None:
                messages.append(message)
                await session.send(answer(message))
        except ProtocolError as error:
            messages.append(error)
            session.kill()
        return messages, await session.finish()

    async def go():
        async with Sandbox() as sandbox:
            return await asyncio.gather(*(one(sandbox) for _ in range(count)))

    return asyncio.run(go())


def reply(message):
    return (
        {"replies": [{"id": 0, "text": "said", "answer": None}] * len(message["asks"])}
        if message["op"] == "ask"
        else {}
    )


def test_a_script_talks():
    ((messages, outcome),) = talk('r = Agent("a", "i")(question)\nsubmit(r)', reply)
    assert (
        [message["op"] for message in messages] == ["ask", "submit"]
        and messages[0]["asks"][0]["text"] == "q"
        and outcome.status == "ok"
    )


def test_many_scripts_talk_at_once():
    found = talk('r = Agent("a", "i")(question)\nsubmit(r)', reply, Limits(), count=200)
    assert all(len(messages) == 2 and outcome.status == "ok" for messages, outcome in found)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b"1",
        b'"text"',
        b"null",
        b'{"op": NaN}',
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_a_message_is_refused(line):
    with pytest.raises(ProtocolError):
        parse_message(line)


@pytest.mark.parametrize(
    "code",
    [
        "os.write(3, b'nonsense\\n')",
        f"os.write(3, b'x' * {MAX_MESSAGE_BYTES * 2})",
        f"import mas; mas._request({{'a': 'x' * {MAX_MESSAGE_BYTES - 8}}})",
        "os.write(3, b'{\"a\":' * 9999 + b'\\n')",
    ],
)
def test_a_script_that_breaks_the_protocol_is_ended(code):
    ((messages, outcome),) = talk(f"import os\n{code}\nwhile True: pass")
    assert (
        isinstance(messages[-1], ProtocolError)
        and outcome.status == "protocol"
        and outcome.seconds < 1.0
    )


def test_messages_are_counted():
    ((messages, outcome),) = talk(
        "a = Agent('a', 'i')\nwhile True: a('x')", reply, Limits(messages=7)
    )
    assert (
        len(messages) == 8
        and isinstance(messages[-1], ProtocolError)
        and outcome.status == "messages"
    )


def test_the_clock_stops_while_an_agent_answers():
    async def go():
        async with Sandbox() as sandbox:
            session = await sandbox.talk(
                'submit(Agent("a", "i")(question))', {"question": "q"}, Limits(wall=0.3)
            )
            await session.receive()
            await asyncio.sleep(0.6)
            await session.send({"replies": [{"id": 0, "text": "said", "answer": None}]})
            assert (await session.receive())["op"] == "submit"
            session.kill()
            await session.finish()
            session = await sandbox.talk("while True: pass", {"question": "q"}, Limits(wall=0.3))
            assert await session.receive() is None
            return await session.finish()

    assert asyncio.run(go()).status == "timeout"


@pytest.mark.parametrize("count", [1, 1000])
@both_levels
def test_a_dead_server_is_noticed_and_replaced(count, level):
    async def go():
        async with Sandbox(level) as sandbox:
            lost = [
                asyncio.create_task(
                    sandbox.run("import time; time.sleep(60)", limits=Limits(wall=60))
                )
                for _ in range(count)
            ]
            while len(sandbox.runs) < count:
                await asyncio.sleep(0.05)
            sandbox.server.kill()
            found = await asyncio.wait_for(asyncio.gather(*lost, return_exceptions=True), 30)
            assert len(found) == count and all(isinstance(error, SandboxError) for error in found)
            return await sandbox.run("print('again')")

    before = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(go()).stdout == "again\n"
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the event loop's own


@both_levels
def test_closing_at_any_moment_leaves_no_process(level):
    """Also of runs that were being forked just then, and would sleep for ever."""

    async def go(pause):
        async with Sandbox(level) as sandbox:
            tasks = [
                asyncio.ensure_future(sandbox.run("import time; time.sleep(1e6)")) for _ in range(6)
            ]
            await asyncio.sleep(pause)
        await asyncio.gather(*tasks, return_exceptions=True)

    others = servers()
    for number in range(20):
        asyncio.run(go(number * 0.0005))
    assert gone(others)


@both_levels
def test_who_is_cancelled_takes_the_run_along(level):
    async def go():
        async with Sandbox(level) as sandbox:
            await sandbox.run("pass")
            before = len(os.listdir("/proc/self/fd"))
            for start in (
                lambda: sandbox.run("import time; time.sleep(1e6)", limits=Limits(wall=1000)),
                lambda: sandbox.talk("pass"),
                lambda: sandbox.talk("import time; time.sleep(1e6)", limits=Limits(wall=1000)),
            ):
                for number in range(8):
                    task = asyncio.ensure_future(start())
                    await asyncio.sleep(number * 0.001)
                    task.cancel()
                    for session in await asyncio.gather(task, return_exceptions=True):
                        if isinstance(session, module.Session):
                            session.kill()
                            await session.finish()
            deadline = time.monotonic() + 5
            while (
                sandbox.runs or len(os.listdir("/proc/self/fd")) > before
            ) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            return len(sandbox.runs), len(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(go()) == (0, 0)


def test_a_busy_parent_holds_up_no_deadline():
    """Hundreds of runs end while nobody reads the reports, and one goes on: it is ended in time."""

    async def go():
        async with Sandbox() as sandbox:
            sleeper = asyncio.ensure_future(
                sandbox.run("import time; time.sleep(60)", limits=Limits(wall=1.5))
            )
            crowd = [
                asyncio.ensure_future(
                    sandbox.run("import time; time.sleep(0.5)", limits=Limits(wall=60))
                )
                for _ in range(400)
            ]
            await asyncio.sleep(0.3)
            while len(sandbox.unsent):
                await asyncio.sleep(0.01)
            time.sleep(4)  # the event loop is busy with something else
            await asyncio.gather(*crowd)
            return await sleeper

    outcome = asyncio.run(go())
    assert outcome.status == "timeout" and outcome.seconds < 3.0


def test_a_clock_does_not_stop_for_ever():
    async def go():
        async with Sandbox() as sandbox:
            session = await sandbox.talk(
                "import os, time\nos.write(3, b'{}\\n')\ntime.sleep(1000)", limits=Limits(wall=0.3)
            )
            assert (
                await session.receive() == {}
                and await asyncio.wait_for(session.receive(), 10) is None
            )
            assert (await session.finish()).status == "timeout"
            session = await sandbox.talk(
                "import os, time\nos.write(3, b'{}\\n')\ntime.sleep(1000)", limits=Limits(wall=0.3)
            )
            await session.receive()
            return await asyncio.wait_for(session.finish(), 10)

    assert asyncio.run(go()).status == "timeout"


def test_limits_are_numbers_and_a_closed_sandbox_is_closed():
    for bad in ({"wall": float("inf")}, {"wall": -1}, {"cpu": float("nan")}, {"memory": 1 << 60}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Limits(**bad)

    async def go():
        async with Sandbox() as sandbox:
            pass
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run("pass")

    asyncio.run(go())


def test_a_server_that_cannot_start_again_hangs_nobody(monkeypatch):
    async def go():
        async with Sandbox() as sandbox:
            sandbox.server.kill()
            await asyncio.sleep(0.2)
            monkeypatch.setattr(
                module, "COMMAND", [sys.executable, "-c", "raise SystemExit('no luck')"]
            )
            for _ in range(2):
                with pytest.raises(SandboxError, match="no luck"):
                    await asyncio.wait_for(sandbox.run("print(1)"), 20)

    asyncio.run(go())


def test_a_thousand_runs_in_flight():
    async def go():
        async with Sandbox() as sandbox:
            return await asyncio.wait_for(
                asyncio.gather(
                    *(sandbox.run("print(1)", limits=Limits(wall=60)) for _ in range(1000))
                ),
                60,
            )

    assert {outcome.stdout for outcome in asyncio.run(go())} == {"1\n"}


def servers():
    """The processes of sandboxes: servers and runs."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found |= {path.parent.name} if b"jail/server.py" in path.read_bytes() else set()
        except OSError:
            pass
    return found


def gone(others, seconds=2.0):
    deadline = time.monotonic() + seconds
    while servers() - others and time.monotonic() < deadline:
        time.sleep(0.02)
    return not servers() - others


@both_levels
def test_nothing_survives_the_trainer(tmp_path, level):
    """kill -9 of the parent: its server and every run in it, deaf to all signals, are gone; so are
    their mounts."""
    program = tmp_path / "parent.py"
    deaf = "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    program.write_text(f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox import Limits, Sandbox
limits = Limits(wall=60, cpu=60)
async def main():
    async with Sandbox({level!r}) as sandbox:
        runs = [asyncio.create_task(sandbox.run({deaf!r}, limits=limits)) for _ in range(20)]
        await asyncio.sleep(0.5)
        print("started", flush=True)
        await asyncio.gather(*runs)
asyncio.run(main())
""")
    others, mounts = servers(), pathlib.Path("/proc/self/mounts").read_text()
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n" and len(servers() - others) >= 21
    parent.kill()
    parent.wait()
    assert gone(others) and pathlib.Path("/proc/self/mounts").read_text() == mounts


@both_levels
def test_a_thousand_runs_leave_nothing(level):
    async def go():
        async with Sandbox(level) as sandbox:
            await asyncio.gather(*(sandbox.run("print(1)") for _ in range(100)))
            before = (
                len(os.listdir("/proc/self/fd")),
                len(os.listdir(f"/proc/{sandbox.server.pid}/fd")),
            )
            for _ in range(5):
                outcomes = await asyncio.gather(*(sandbox.run("print(1)") for _ in range(200)))
                assert {outcome.stdout for outcome in outcomes} == {"1\n"}
            return (
                before,
                (
                    len(os.listdir("/proc/self/fd")),
                    len(os.listdir(f"/proc/{sandbox.server.pid}/fd")),
                ),
                sandbox.runs,
                sandbox.unsent,
            )

    others = servers()
    before, after, runs, unsent = asyncio.run(go())
    assert before == after and not runs and not unsent and gone(others)


# ------------------------------------------------------------------------------------- the levels


def test_the_best_level_that_passes_is_taken(monkeypatch):
    """A level that lets one thing through is not taken, and the reason is said."""

    async def go():
        async with Sandbox() as sandbox:
            return sandbox.level, sandbox.why_not

    best, _ = asyncio.run(go())
    assert best == ("landlock" if works("namespaces") else "namespaces")
    if best == "namespaces" and not works("landlock"):
        start = Sandbox.start

        async def leaks(self):
            """A level by the name of namespaces which in truth protects nothing."""
            real = self.level
            self.level = "none" if real == "namespaces" else real
            try:
                await start(self)
            finally:
                self.level = real

        # Without the attempt that would succeed by replacing the process.
        attempts = [line for line in module.PROBE.splitlines() if "execv" not in line]
        monkeypatch.setattr(module, "PROBE", "\n".join(attempts))
        monkeypatch.setattr(Sandbox, "start", leaks)
        level, why_not = asyncio.run(go())
        assert level == "landlock" and "read" in why_not["namespaces"]


def test_where_no_level_works_the_start_is_refused(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        run("print(1)")


def test_a_place_inside_of_what_runs_may_read_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "readable_paths", lambda: [str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SandboxError, match="would be readable"):
        run("print(1)")


def test_what_each_level_shows(tmp_path):
    (tmp_path / "secret").write_text("secret")
    code = f"""
import os
print(os.path.exists({str(tmp_path)!r}))
try:
    print(open({str(tmp_path / "secret")!r}).read())
except OSError as error:
    print("refused")
"""
    seen = {
        "namespaces": "False\nrefused\n",
        "landlock": "True\nrefused\n",
        "none": "True\nsecret\n",
    }
    for level in [level for level in seen if not works(level)]:
        assert run(code, level=level).stdout == seen[level], level
    write = f"open({str(tmp_path / 'new')!r}, 'w').write('x')"
    for level in ("namespaces", "landlock"):
        if not works(level):
            assert run(write, level=level).status == "error" and not (tmp_path / "new").exists()
    assert run(write, level="none").status == "ok" and (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["jail", "jail.server", "jail.child", "sandbox", "data_types"])
def test_a_run_can_import_nothing_of_the_project(name):
    outcome = run(f"import {name}")
    assert outcome.status == "error" and "ModuleNotFoundError" in outcome.stderr


def test_level_none_ends_what_a_run_started():
    others = servers()
    outcome = run("import os, time\nif os.fork() == 0: time.sleep(60)\nprint('done')", level="none")
    assert outcome.stdout == "done\n" and outcome.level == "none" and gone(others)


# ----------------------------------------------------------------------------- candidate programs


def ask(code, function, calls, level="auto", **limits):
    async def go():
        async with Sandbox(level) as sandbox:
            return await call(sandbox, code, function, calls, Limits(**limits))

    return asyncio.run(go())


def test_calls_of_a_candidate():
    code = (
        "class Solution:\n"
        "    def f(self, x): return {x: (x, [x])}\n"
        "def g(x): raise KeyError(x)\n"
        "print(__name__)"
    )
    outcome, results = ask(code, "Solution().f", [[1], [2]])
    assert outcome.status == "ok" and outcome.stdout == "candidate\n"
    assert (
        results
        == [{"value": encode({x: (x, [x])})} for x in (1, 2)]
        != [{"value": encode({x: [x, [x]]})} for x in (1, 2)]
    )
    assert ask(code, "g", [[1], [2]])[1] == [{"error": "KeyError"}] * 2 and ask(code, "h", [[]])[
        1
    ] == [{"error": "NameError"}]


def test_arguments_keep_their_types():
    arguments = [[(1, 2), {3}, {4: None}, [5], 1.5, float("inf"), b"x", 10**30]]
    assert ask("def f(*a): return [type(x).__name__ for x in a] + list(a)", "f", arguments)[1] == [
        {
            "value": encode(
                ["tuple", "set", "dict", "list", "float", "float", "bytes", "int", *arguments[0]]
            )
        }
    ]


@pytest.mark.parametrize(
    "code, found",
    [
        (
            "def f(x):\n    import os\n    if x == 2: os._exit(0)\n    return x",
            [{"value": 1}, {"error": "no result"}, {"error": "no result"}],
        ),
        (
            "def f(x):\n    while x == 2: pass\n    return x",
            [{"value": 1}, {"error": "no result"}, {"error": "no result"}],
        ),
        (
            "import os\nos.write(3, b'{\"value\": 7}\\n' * 9)\ndef f(x): return x",
            [{"value": 7}] * 3,
        ),  # it can only answer, well or badly
        (
            "import os\n"
            "os.write(3, b'nonsense\\n[1]\\n' + b'[' * 99999 + b'\\n')\n"
            "def f(x): return x",
            [{"error": "not a result"}] * 3,
        ),
        ("def f(x): return object()", [{"error": "TypeError"}] * 3),
        (
            "class E:\n"
            "    def __eq__(self, other): return True\n"
            "class L(list): pass\n"
            "def f(x): return [E(), L()][x % 2]",
            [{"error": "TypeError"}] * 3,
        ),
    ],
)
def test_results_are_data_and_missing_ones_are_failures(code, found):
    assert ask(code, "f", [[1], [2], [3]], wall=1.0)[1] == found


def test_results_of_a_million_parts_cost_nothing_here():
    code = (
        "import os\n"
        "os.write(3, b'{\"value\":{\"dict\":[' + b'{},' * 1_300_000 + b'{}]}}\\n')\n"
        "def f(): return 1"
    )
    started = time.process_time()
    assert (
        ask(code, "f", [[]])[1] == [{"error": "not a result"}]
        and time.process_time() - started < 1.0
    )


def test_results_that_hash_alike_cost_nothing_here():
    """30,000 ints, multiples of 2^61-1, as a set: building that set again would take the parent
    seconds."""
    code = (
        "import os, json\n"
        "os.write(3, json.dumps({'value': "
        "{'set': [i * ((1 << 61) - 1) for i in range(30000)]}}).encode() + b'\\n')\n"
        "def f(): pass"
    )
    started = time.process_time()
    _, (result,) = ask(code, "f", [[]])
    assert result != {"value": encode({1})} and time.process_time() - started < 1.0


# ------------------------------------------------------------------------------------ the command


def command(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "sandbox.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/tmp",
        timeout=60,
    )


def test_the_command(tmp_path):
    (tmp_path / "file.py").write_text("print(6 * 7)\n1 / 0")
    process = command(tmp_path / "file.py")
    outcome = json.loads(process.stdout)
    assert process.returncode == 0 and outcome["status"] == "error" and outcome["stdout"] == "42\n"
    assert {"status", "stdout", "stderr", "seconds", "level"} <= set(outcome)


@needs_shared
def test_the_command_on_every_attack():
    """Whatever the file does: one JSON object, exit code 0."""
    paths = sorted((SHARED / "attacks").glob("*.py"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        processes = list(pool.map(lambda path: command(path, "--wall", 0.3), paths))
    for path, process in zip(paths, processes, strict=True):
        assert process.returncode == 0, path
        assert json.loads(process.stdout)["status"], path
        assert process.stderr == "", path


def test_check_says_which_level_works():
    found = json.loads(command("--check").stdout)
    assert found["level"] in ("namespaces", "landlock") and set(found["why_not"]) == {
        level for level in ("namespaces", "landlock") if works(level)
    }
    assert json.loads(command("--check", "--sandbox", "none").stdout) == {
        "level": "none",
        "why_not": {},
    }


def test_an_unknown_level_is_refused():
    with pytest.raises(SandboxError, match="magic"):
        run("", level="magic")
    assert command("--check", "--sandbox", "magic").returncode == 2


def test_a_run_that_never_began_is_not_the_scripts_fault():
    async def go():
        async with Sandbox() as sandbox:
            with pytest.raises(SandboxError, match="before its script began"):
                await sandbox.talk("submit(1)", {}, Limits(wall=0.0))
            session = await sandbox.talk("while True: pass", {}, Limits(wall=0.2))
            return await session.receive(), await session.finish()

    message, outcome = asyncio.run(go())
    assert message is None and outcome.status == "timeout"  # this one began
