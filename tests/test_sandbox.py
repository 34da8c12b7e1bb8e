"""The sandbox: every limit gives its own outcome, attacks are contained, the protocol is checked, nothing is left behind."""
import asyncio
import json
import os
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SHARED, needs_shared

from sandbox import MAX_LINE, Limits, ProtocolError, Sandbox, SandboxError, parse_message


def run(code, stdin=b"", **limits):
    async def go():
        async with Sandbox() as sandbox:
            return await sandbox.run(code, stdin, Limits(**limits))

    return asyncio.run(go())


@pytest.mark.parametrize("code, status, stdout", [
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
    ("import sys\nwhile True: sys.stdout.write('x' * 1000)", "output", "x" * 4096),
    ("import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()", "timeout", ""),
    ("import threading; t = threading.Thread(target=print, args=('hi',)); t.start(); t.join()", "ok", "hi\n"),
    ("print(input())", "ok", "first\n"),
    ("import sys; print(len(sys.stdin.read()))", "ok", "13\n"),
    ("import json, math, re, collections, random; print(math.pi)", "ok", "3.141592653589793\n"),
], ids=lambda value: value[:30] if isinstance(value, str) else None)
def test_outcomes(code, status, stdout):
    outcome = run(code, b"first\nsecond\n", wall=1.0, memory=256 << 20, output=4096)
    assert (outcome.status, outcome.stdout) == (status, stdout), outcome
    assert outcome.level == "landlock" and outcome.seconds < 1.5


def test_cpu_time_has_its_own_outcome():
    assert run("while True: pass", wall=20, cpu=1).status == "cpu"


def test_tracebacks_show_the_scripts_own_frames():
    text = run("def f():\n    return 1 / 0\nf()").stderr
    assert "return 1 / 0" in text and "ZeroDivisionError" in text and "jail.py" not in text


@needs_shared
def test_every_known_attack_is_contained(tmp_path):
    """All attack scripts at once: no secret comes out, nothing is written, each ends within its limits as it should."""
    truth = tmp_path / "truth"
    truth.write_text("TRUTHCANARY")
    filled = {"@PPID@": str(os.getpid()), "@PROJ@": str(ROOT), "@HOME@": str(tmp_path), "@TRUTH@": str(truth), "@PORT@": "9"}
    scripts = {}
    for path in sorted((SHARED / "attacks").glob("*.py")):
        code = path.read_text(errors="surrogateescape")
        for mark, value in filled.items():
            code = code.replace(mark, value)
        scripts[path.stem] = (code, re.search(r"# mode: (\w+)", code)[1], re.search(r"# expect: (\S+)", code)[1].split("|"))
    before = {path: path.stat().st_mtime_ns for path in [*ROOT.glob("*"), *tmp_path.glob("*")]}

    async def go():
        async with Sandbox() as sandbox:
            limits = Limits(wall=3.0, cpu=2.0, memory=256 << 20)
            gate = asyncio.Semaphore(6)

            async def one(name):
                async with gate:
                    return name, await sandbox.run(scripts[name][0], limits=limits)

            found = dict(await asyncio.gather(*map(one, scripts)))
            return found, await sandbox.run("print('clean')"), len(sandbox.runs)

    found, clean, left = asyncio.run(go())
    assert len(found) >= 60 and clean.stdout == "clean\n" and left == 0
    for name, outcome in found.items():
        code, mode, expected = scripts[name]
        assert "TRUTHCANARY" not in outcome.stdout + outcome.stderr and outcome.seconds < 4.0, (name, outcome)
        assert "ESCAPE" not in outcome.stdout + outcome.stderr, (name, outcome)
        if mode == "script" and expected != ["any"]:
            assert outcome.status in expected, (name, outcome)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_has_its_own_descriptors_and_no_other():
    """Also where the parent holds many: the server's own line must not be among them, or a run could report its own end."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    try:
        code = "import os\nfor fd in range(400):\n    try: os.fstat(fd); print(fd)\n    except OSError: pass"
        assert run(code).stdout.split() == ["0", "1", "2"]
    finally:
        for fd in held:
            os.close(fd)


def test_nobodys_limits_can_be_changed():
    code = f"""
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
place = libc.mmap(ctypes.c_void_p(1 << 32), 4096, 3, 0x32, -1, 0)  # an address whose low half is zero
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
    return {"replies": [{"id": 0, "text": "said", "answer": None}] * len(message["asks"])} if message["op"] == "ask" else {}


def test_a_script_talks():
    (messages, outcome), = talk('r = Agent("a", "i")(question)\nsubmit(r)', reply)
    assert [message["op"] for message in messages] == ["ask", "submit"] and messages[0]["asks"][0]["text"] == "q" and outcome.status == "ok"


def test_many_scripts_talk_at_once():
    found = talk('r = Agent("a", "i")(question)\nsubmit(r)', reply, Limits(), count=200)
    assert all(len(messages) == 2 and outcome.status == "ok" for messages, outcome in found)


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"1", b'"text"', b"null", b'{"op": NaN}', b"\xff\xfe", b"{" * 100_000, b"[" * 100_000,
                                  b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_not_a_message_is_refused(line):
    with pytest.raises(ProtocolError):
        parse_message(line)


@pytest.mark.parametrize("code", ["os.write(3, b'nonsense\\n')", f"os.write(3, b'x' * {MAX_LINE * 2})", "os.write(3, b'{\"a\":' * 9999 + b'\\n')"])
def test_a_script_that_breaks_the_protocol_is_ended(code):
    (messages, outcome), = talk(f"import os\n{code}\nwhile True: pass")
    assert isinstance(messages[-1], ProtocolError) and outcome.status == "killed" and outcome.seconds < 1.0


def test_the_clock_stops_while_an_agent_answers():
    async def go():
        async with Sandbox() as sandbox:
            session = await sandbox.talk('submit(Agent("a", "i")(question))', {"question": "q"}, Limits(wall=0.3))
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


def test_a_dead_server_is_noticed_and_replaced():
    async def go():
        async with Sandbox() as sandbox:
            lost = asyncio.create_task(sandbox.run("import time; time.sleep(60)"))
            await asyncio.sleep(0.2)
            sandbox.server.kill()
            with pytest.raises(SandboxError, match="died"):
                await lost
            return await sandbox.run("print('again')")

    assert asyncio.run(go()).stdout == "again\n"


def test_nothing_survives_the_trainer(tmp_path):
    """kill -9 of the parent: its server and every run in it, deaf to all signals, are gone."""
    program = tmp_path / "parent.py"
    program.write_text(f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox import Limits, Sandbox
async def main():
    async with Sandbox() as sandbox:
        deaf = "import signal\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\nwhile True: pass"
        runs = [asyncio.create_task(sandbox.run(deaf, limits=Limits(wall=60, cpu=60))) for _ in range(5)]
        await asyncio.sleep(0.3)
        print(sandbox.server.pid, flush=True)
        await asyncio.gather(*runs)
asyncio.run(main())
""")
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    server = int(parent.stdout.readline())

    def children():
        return [int(line.split()[0]) for line in subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
                if "jail.py" in line and str(server) in line.split()[:2]]

    assert len(children()) == 6
    runs = children()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 2
    while any(os.path.exists(f"/proc/{pid}") for pid in runs) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in runs)


def test_a_thousand_runs_leave_nothing():
    async def go():
        async with Sandbox() as sandbox:
            await asyncio.gather(*(sandbox.run("print(1)") for _ in range(100)))
            before = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{sandbox.server.pid}/fd"))
            for _ in range(5):
                outcomes = await asyncio.gather(*(sandbox.run("print(1)") for _ in range(200)))
                assert {outcome.stdout for outcome in outcomes} == {"1\n"}
            return before, (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{sandbox.server.pid}/fd")))

    before, after = asyncio.run(go())
    assert before == after


def test_the_command(tmp_path):
    (tmp_path / "file.py").write_text("print(6 * 7)\n1 / 0")
    process = subprocess.run([sys.executable, str(ROOT / "sandbox.py"), str(tmp_path / "file.py")], capture_output=True, text=True)
    outcome = json.loads(process.stdout)
    assert process.returncode == 0 and outcome["status"] == "error" and outcome["stdout"] == "42\n"
    assert {"status", "stdout", "stderr", "seconds", "level"} <= set(outcome)


def test_an_unknown_level_is_refused():
    async def go():
        async with Sandbox("magic"):
            pass

    with pytest.raises(SandboxError, match="magic"):
        asyncio.run(go())
