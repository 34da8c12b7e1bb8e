"""The demo server: the design first, replies as they come, several at once, nothing left running,
nobody else let in."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import aiohttp
import pytest
from conftest import CHROMIUM, CHROMIUM_FLAGS, ROOT, Scripted, needs_chromium

import eval as evaluation
from data_types import Budget
from engines.hf import HFEngine
from executor import Runtime
from lib.errors import EngineError, UserError
from rollout import Rollout
from sandbox import Sandbox
from viewer import serve

SCRIPT = """```python
a = Agent("first", "Go.")
b = Agent("second", "Check.")
r = a(question)
submit(b(r))
```"""


class Held(Scripted):
    """An engine that speaks when it is let: one reply for each `let`, and says which question's
    design it is asked for."""

    def __init__(self, policy, let=1000):
        super().__init__(
            policy,
            lambda prompt: (
                SCRIPT if "Building blocks" in prompt or "Design" in prompt else r"\boxed{7}"
            ),
        )
        self.gate, self.asked, self.cancelled = asyncio.Semaphore(let), 0, 0

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0):
        self.asked += 1
        try:
            await self.gate.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().sample(prompt_ids, max_tokens, seed, temperature)


@contextlib.asynccontextmanager
async def serving(engine, policy, script_seconds=5.0):
    """A server on a free port -> (its address, its sandbox)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Sandbox() as sandbox:
        budget = Budget(calls=8, reply_tokens=48, script_seconds=script_seconds)
        rollout = Rollout(Runtime(engine, policy, sandbox, budget))
        config = evaluation.Config(design_tokens=96, port=port)
        server = asyncio.ensure_future(serve.Server(rollout, config).run())
        for _ in range(500):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}", sandbox
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)


def post(session, url, question="What is 3 + 4?", **headers):
    return session.post(
        url + "/ask",
        data=json.dumps({"question": question}),
        headers={"Origin": url, "Content-Type": "application/json", **headers},
    )


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


def test_the_design_comes_first_and_replies_as_they_are_said(policy):
    async def go():
        engine = Held(policy, let=0)
        async with (
            serving(engine, policy) as (url, sandbox),
            aiohttp.ClientSession() as session,
            post(session, url) as answer,
        ):
            line = answer.content.readline
            assert json.loads(await line())["designs"] == []
            # each time one more reply is let through: the design's, the first agent's, the second's
            for calls in range(3):
                engine.gate.release()
                (design,) = json.loads(await line())["designs"]
                (execution,) = design["executions"]
                assert (
                    "Agent(" in design["script"]
                    and len(execution["calls"]) == calls
                    and execution["status"] is None
                )
            (execution,) = json.loads(await line())["designs"][0]["executions"]
            assert (execution["status"], execution["answer"], execution["submitted"]) == (
                "answered",
                "7",
                1,
            ) and await line() == b""

    asyncio.run(go())


def test_several_at_once_on_the_real_engine(policy):
    """Eight questions at the same time get an answer each, and the engine ends as it began."""

    async def go():
        engine = HFEngine(policy)

        async def one(session, url, number):
            async with post(session, url, f"What is {number} + 4?") as answer:
                return [json.loads(line) async for line in answer.content]

        async with serving(engine, policy) as (url, sandbox), aiohttp.ClientSession() as session:
            runs = await asyncio.gather(*(one(session, url, number) for number in range(8)))
        assert [lines[-1]["question"] for lines in runs] == [
            f"What is {number} + 4?" for number in range(8)
        ]
        assert (
            all(lines[-1]["designs"][0]["executions"][0]["status"] for lines in runs)
            and not engine.waiting
        )

    asyncio.run(go())


@pytest.mark.parametrize("let", [0, 1, 2])
def test_a_client_that_stops_leaves_nothing_running(policy, let):
    """It goes while the design is sampled, while the first agent speaks, while the second does."""

    async def go():
        engine = Held(policy, let)
        async with serving(engine, policy) as (url, sandbox), aiohttp.ClientSession() as session:
            answer = await post(session, url)
            await until(lambda: engine.asked == 1 + let)
            assert engine.cancelled == 0
            answer.close()
            await until(lambda: engine.cancelled == 1 and not sandbox.runs)
            engine.gate = asyncio.Semaphore(9)  # and the next one is served
            async with post(session, url) as again:
                assert (
                    json.loads((await again.read()).splitlines()[-1])["designs"][0]["executions"][
                        0
                    ]["status"]
                    == "answered"
                )

    asyncio.run(go())


def test_a_slow_script_holds_up_nobody(policy):
    """One question's script thinks for ever; the other is answered meanwhile."""

    async def go():
        class Slow(HFEngine):
            async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0):
                completion = await super().sample(prompt_ids, max_tokens, seed, temperature)
                text = self.policy.text(prompt_ids)
                return (
                    replace(completion, text="while True: pass", truncated=False)
                    if "slow" in text
                    else replace(completion, text=SCRIPT, truncated=False)
                )

        engine = Slow(policy)
        async with (
            serving(engine, policy, script_seconds=60.0) as (url, sandbox),
            aiohttp.ClientSession() as session,
        ):
            slow = await post(session, url, "slow")
            for _ in range(2):
                await slow.content.readline()
            async with post(session, url, "quick") as quick:
                assert json.loads((await quick.read()).splitlines()[-1])["designs"][0][
                    "executions"
                ][0]["calls"]
            assert sandbox.runs  # the slow one's, still at it
            slow.close()

    asyncio.run(go())


def test_a_batch_that_nobody_waits_for_is_dropped(policy):
    async def go():
        engine = HFEngine(policy)
        engine.in_rounds = False
        prompt = policy.render([{"role": "user", "content": "x"}])
        decoding = asyncio.ensure_future(engine.sample(prompt, 2000, 1))
        steps = []
        policy_end, policy.end_ids = policy.end_ids, frozenset()  # it would go on to the limit
        try:
            while engine.pump is None or len(steps) < 5:
                steps.append(await asyncio.sleep(0))
            decoding.cancel()
            await asyncio.gather(decoding, return_exceptions=True)
            for _ in range(20):
                await asyncio.sleep(0)
            assert engine.pump.done() and engine.tokens == 0
        finally:
            policy.end_ids = policy_end

    asyncio.run(go())


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "["},
        {"Origin": "http://["},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
def test_other_hosts_and_origins_are_refused(policy, headers):
    async def go():
        engine = Held(policy)
        async with serving(engine, policy) as (url, sandbox), aiohttp.ClientSession() as session:
            async with post(session, url, **headers) as answer:
                assert answer.status == 403 and not engine.prompts
            if "Content-Type" not in headers:
                async with session.get(url + "/", headers=headers) as answer:
                    assert answer.status == 403
            async with session.post(
                url + "/ask", json={"question": "x"}
            ) as answer:  # no origin at all
                assert answer.status == 403
            async with session.get(url + "/") as answer:
                assert answer.status == 200 and "connect-src 'self'" in await answer.text()

    asyncio.run(go())


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"question": 7}',
        '{"question": " "}',
        "\udcff",
        "[" * 100_000,
        '{"question": "\\ud800"}',
    ],
)
def test_bad_requests(policy, body):
    async def go():
        async with (
            serving(Held(policy), policy) as (url, sandbox),
            aiohttp.ClientSession() as session,
        ):
            async with session.post(
                url + "/ask",
                data=body.encode("utf-8", "surrogateescape"),
                headers={"Origin": url, "Content-Type": "application/json"},
            ) as answer:
                assert answer.status == 400 and len(await answer.text()) < 200

    asyncio.run(go())


def test_an_engine_that_fails_is_told(policy):
    async def go():
        async with (
            serving(Scripted(policy, lambda prompt: EngineError("out of memory")), policy) as (
                url,
                sandbox,
            ),
            aiohttp.ClientSession() as session,
        ):
            async with post(session, url) as answer:
                assert json.loads((await answer.read()).splitlines()[-1]) == {
                    "error": "out of memory"
                }

    asyncio.run(go())


def test_a_port_that_is_taken(policy):
    async def go():
        async with serving(Held(policy), policy) as (url, sandbox):
            with pytest.raises(UserError, match="--port"):
                rollout = Rollout(Runtime(Held(policy), policy, sandbox))
                taken = evaluation.Config(port=int(url.rsplit(":")[-1]))
                await serve.Server(rollout, taken).run()

    asyncio.run(go())


def test_the_command(tmp_path):
    """`eval.py --serve` says where it is, answers, and ends on Ctrl-C without a complaint."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "eval.py"), "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    url = process.stdout.readline().split()[0].rstrip("/")

    async def go():
        async with aiohttp.ClientSession() as session, post(session, url) as answer:
            return json.loads((await answer.read()).splitlines()[-1])

    assert asyncio.run(go())["designs"][0]["executions"][0]["status"]
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said


@needs_chromium
def test_in_a_browser(policy):
    """Asked in two windows: the design is shown first, then the replies; stopping one leaves the
    other alone."""
    from playwright.async_api import async_playwright

    async def go():
        engine, problems = Held(policy, let=0), []
        async with serving(engine, policy) as (url, sandbox), async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=CHROMIUM_FLAGS
            )
            windows = [await browser.new_page() for _ in range(2)]
            for number, page in enumerate(windows):
                page.on("console", lambda message: problems.append(message.text))
                page.on("pageerror", lambda error: problems.append(str(error)))
                await page.goto(url)
                await page.get_by_label("Question").fill(f"What is {number} + 4?")
                await page.get_by_role("button", name="Ask").click()
                await page.get_by_text("designing …").wait_for()
            await until(lambda: engine.asked == 2)
            for _ in range(2):
                engine.gate.release()
            for number, page in enumerate(windows):
                await page.locator("pre.code").wait_for()
                assert (
                    "Agent(" in await page.locator("pre.code").text_content()
                    and await page.locator("details.call").count() == 0
                )
                assert await page.locator("#asked").text_content() == f"What is {number} + 4?"
            await windows[1].get_by_role("button", name="Stop").click()
            await windows[1].get_by_text("stopped").wait_for()
            await until(lambda: engine.cancelled == 1)
            engine.gate.release()
            await windows[0].locator("details.call").wait_for()
            assert (
                await windows[0].locator("#status").text_content() == "the agents are answering …"
                and r"\boxed{7}" in await windows[0].locator("details.call").text_content()
            )
            engine.gate.release()
            await windows[0].get_by_text("done").wait_for()
            assert (
                await windows[0].locator("details.call").count() == 2
                and not sandbox.runs
                and not problems
            )
            await browser.close()

    asyncio.run(go())
