"""The demo: type a question, watch the design appear and the agents answer.

    python eval.py --model DIR --serve           then open the address that it prints

It listens on this machine's loopback alone (from elsewhere: ssh -L). A page of another site can't
use it: a request has to name this machine as its host, which stops DNS rebinding, and to come from
this server's own page. Each question is a request that streams the run so far, a JSON line at a
time. When its client is gone, it is cancelled: its script is killed and its samples are dropped.

Test: `pytest tests/test_serve.py`. Read next: ../experiments/claims.py.
"""

import asyncio
import json
from dataclasses import replace
from urllib.parse import urlsplit

from aiohttp import web

from data_types import Design, Execution, Question
from designer import sample_design
from executor import Executor
from lib.cli import log
from lib.errors import EngineError, UserError
from tasks import with_tools
from viewer import pages

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@web.middleware
async def from_here(request, handler):
    """Refuse other hosts and other origins."""
    if not is_from_here(request):
        raise web.HTTPForbidden(text="this server answers its own page only")
    return await handler(request)


def is_from_here(request) -> bool:
    origin = request.headers.get("Origin")
    try:
        host = urlsplit(f"//{request.headers.get('Host', '')}")
        if host.hostname not in LOOPBACK:
            return False
        if origin is not None and urlsplit(origin).netloc != host.netloc:
            return False
    except ValueError:  # not even addresses
        return False
    if request.method == "POST":
        return origin is not None and request.content_type == "application/json"
    return True


class Server:
    """Answers questions, any number at once."""

    def __init__(self, rollout, config):
        """
        Args:
            rollout: a rollout.Rollout, whose engines, sandbox and budget are used.
            config: eval.Config. Every question has a seed of its own.
        """
        self.rollout = rollout
        self.config = config
        self.num_asked = 0

    async def run(self) -> None:
        """Serve until it is cancelled. Raises UserError if the port is taken."""
        for engine in (self.rollout.designer[0], self.rollout.runtime.engine):
            if hasattr(engine, "in_rounds"):
                engine.in_rounds = False  # nobody waits for another's script
        app = web.Application(middlewares=[from_here])
        app.add_routes([web.get("/", self.page), web.post("/ask", self.ask)])
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, LOOPBACK[0], self.config.port)
            try:
                await site.start()
            except OSError as error:
                problem = error.strerror or error
                raise UserError(f"--port {self.config.port}: {problem}") from None
            log.info(f"http://{LOOPBACK[0]}:{runner.addresses[0][1]}/   (Ctrl-C ends it)")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def page(self, request):
        return web.Response(
            text=pages.run_page(None, live=True),
            content_type="text/html",
            headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"},
        )

    async def ask(self, request):
        """A POST of {"question": TEXT}: the answer is the run so far, anew in every line."""
        try:
            text = (await request.json())["question"].strip()
            text.encode()  # half a character is not text
        except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError):
            raise web.HTTPBadRequest(text='a question is JSON: {"question": TEXT}') from None
        if not text:
            raise web.HTTPBadRequest(text="the question is empty")
        self.num_asked += 1
        seed = (self.config.seed, "serve", self.num_asked)
        lines = asyncio.Queue()
        question = with_tools(Question("asked", text, ""))
        answer = self.answer(question, seed, lines.put_nowait)
        answering = asyncio.ensure_future(answer)
        answering.add_done_callback(lambda _: lines.put_nowait(None))
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
        )
        try:
            await response.prepare(request)
            while (line := await lines.get()) is not None:
                await response.write(json.dumps(pages.visible(line)).encode() + b"\n")
            await answering
            await response.write_eof()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        return response

    async def answer(self, question: Question, seed: tuple, send) -> None:
        """Design and execute; `send` gets the episode at every step.

        A failing engine is told, not raised.
        """
        config, runtime = self.config, self.rollout.runtime
        engine, designer_policy = self.rollout.designer

        def episode(design: Design | None = None, execution: Execution | None = None) -> dict:
            designs = []
            if design is not None:
                shown = pages.design_data(design, designer_policy)
                run = pages.execution_data(execution, question, runtime.policy)
                designs.append(shown | {"executions": [run]})
            return {
                "step": None,
                "question": question.prompt,
                "family": "",
                "gold": "",
                "designs": designs,
            }

        def running(calls: tuple = ()) -> Execution:
            return Execution(calls, None, None)

        try:
            send(episode())
            design = await sample_design(
                engine, designer_policy, question, seed, config.design_tokens, config.temperature
            )
            send(episode(design, running()))
            watched = replace(runtime, on_call=lambda calls: send(episode(design, running(calls))))
            executor = Executor(watched, question, (*seed, 0))
            send(episode(design, await executor.execute(design)))
        except EngineError as error:
            send({"error": str(error)})
