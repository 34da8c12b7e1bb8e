"""100,000 messages that nobody should send: to the parent as a script's, to the server as the
parent's. No crash, no hang, memory flat."""

import asyncio
import json
import os
import pathlib
import resource
import socket
import types

from conftest import ROOT  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.errors import ProtocolError
from lib.messages import parse_ask
from sandbox import Limits, Sandbox, Session

BATCH = 100  # messages in an example
BATCHES = 500  # examples: 50,000 messages to the parent, 50,000 to the server
ASK = {
    "agent": 0,
    "name": "a",
    "instructions": "b",
    "tools": [],
    "memory": False,
    "max_turns": 2,
    "text": "c",
}
RUN = {
    "op": "run",
    "id": 7,
    "kind": "program",
    "limits": {
        "wall": 1,
        "cpu": 1,
        "memory": 1 << 28,
        "output": 4096,
        "scratch": 4096,
        "files": 10,
        "threads": 1,
    },
}
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["ask", "submit", "run", "kill", "clock"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def changed(message):
    """`message` with one field, at any depth, set to something else or gone."""
    paths = [(key,) for key in message] + [
        (key, inner) for key, value in message.items() if isinstance(value, dict) for inner in value
    ]

    def change(pair):
        path, value = pair
        copy = json.loads(json.dumps(message))
        target = copy
        for key in path[:-1]:
            target = target[key]
        if value == "gone":
            del target[path[-1]]
        else:
            target[path[-1]] = value
        return copy

    return st.tuples(st.sampled_from(paths), values | st.just("gone")).map(change)


def batches(*examples):
    """Lists of messages: noise, any JSON, something close to a real message; each also cut,
    doubled and with one byte changed."""
    line = st.binary(max_size=40) | st.one_of(values, *map(changed, examples)).map(
        lambda value: json.dumps(value).encode()
    )

    def variants(drawn):
        return [
            line
            for seed in drawn
            for line in (
                seed,
                seed[:-1],
                seed + seed,
                seed[: len(seed) // 2] + b'"' + seed[len(seed) // 2 + 1 :],
            )
        ]

    return st.lists(line, min_size=BATCH // 4, max_size=BATCH // 4).map(variants)


def memory(pid="self"):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


quick = settings(
    max_examples=BATCHES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_scripts_messages():
    counts, corpus = {"read": 0, "refused": 0, "asks": 0}, []

    async def one(batch):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        session = Session(
            types.SimpleNamespace(post=lambda message, fds=(): None), 1, Limits(messages=10**9), []
        )
        session.line = ours
        with ours, theirs:
            theirs.sendall(b"\n".join(line.replace(b"\n", b"") for line in batch) + b"\n")
            theirs.shutdown(socket.SHUT_WR)
            for _ in batch:
                try:
                    message = await session.receive()
                    counts["read"] += 1
                except ProtocolError:
                    counts["refused"] += 1
                    continue
                for ask in message["asks"] if isinstance(message.get("asks"), list) else [message]:
                    try:
                        parse_ask(ask)
                        counts["asks"] += 1
                    except ProtocolError:
                        pass
            assert await session.receive() is None

    with asyncio.Runner() as runner:

        @quick
        @given(batches({"op": "ask", "asks": [ASK]}, {"op": "submit", "reply": 0}, ASK))
        def fuzz(batch):
            corpus.append(batch)
            runner.run(asyncio.wait_for(one(batch), 20))

        fuzz()
        before = memory()  # only now: the generator keeps what it has generated
        for batch in corpus:
            runner.run(one(batch))
        assert memory() - before < 16 << 20
    assert (
        counts["read"] + counts["refused"] >= 2 * BATCH * BATCHES and min(counts.values()) > 1000
    ), counts


def test_control_messages():
    async def one(sandbox, batch):
        for number, line in enumerate(batch):
            held = [
                os.open("/dev/null", os.O_RDWR) for _ in range((0, 3, 0, 4, 0, 1, 0, 8)[number % 8])
            ]
            while True:
                try:
                    socket.send_fds(sandbox.control, [line[:4000]], held)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            for fd in held:
                os.close(fd)
        outcome = await asyncio.wait_for(sandbox.run("print(1)"), 20)
        assert outcome.stdout == "1\n"

    with asyncio.Runner() as runner:
        sandbox = Sandbox("landlock")  # here the server's process is known
        runner.run(sandbox.__aenter__())
        sandbox.num_runs = 10**6  # not the runs that the fuzz may name
        server, before = sandbox.server.pid, []

        @quick
        @given(
            batches(RUN, {"op": "kill", "id": 7, "why": "x"}, {"op": "clock", "id": 7, "left": 1.0})
        )
        def fuzz(batch):
            runner.run(one(sandbox, batch))
            before.append((memory(server), len(os.listdir(f"/proc/{server}/fd"))))

        fuzz()
        assert (
            len(before) >= BATCHES
            and sandbox.server.pid == server
            and sandbox.server.poll() is None
        )
        assert (
            before[-1][0] - before[len(before) // 5][0] < 8 << 20
            and before[-1][1] <= before[0][1] + 4
        )
        runner.run(sandbox.__aexit__())
