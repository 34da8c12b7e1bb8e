"""The demo: type a question, watch the design appear and the agents answer.

    python eval.py --model DIR --serve           then open the address that it prints

It listens on this machine's loopback alone (from elsewhere: ssh -L). A page of another site can't use it: a request has to name this machine as
its host, which stops DNS rebinding, and to come from this server's own page. Each question is a request that streams the run so far, a
JSON line at a time; when its client is gone, it is cancelled: its script is killed and its samples are dropped.
Test: `pytest tests/test_serve.py`. Read next: experiments.py.
"""

import asyncio
import json
import math
from urllib.parse import urlsplit

from aiohttp import web

import pages
import tasks
from cli import log
from designer import design
from executor import Execution, Executor
from policy import EngineError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@web.middleware
async def from_here(request, handler):
    """Refuse other hosts and other origins."""
    origin = request.headers.get("Origin")
    try:
        host = urlsplit(f"//{request.headers.get('Host', '')}")
        allowed = host.hostname in LOOPBACK and (
            origin is None or urlsplit(origin).netloc == host.netloc
        )
    except ValueError:  # not even addresses
        allowed = False
    if (
        not allowed
        or request.method == "POST"
        and (origin is None or request.content_type != "application/json")
    ):
        raise web.HTTPForbidden(text="this server answers its own page only")
    return await handler(request)


class Server:
    """Answers questions, any number at once."""

    def __init__(self, grow, config):
        """grow: a Rollout, whose engines, sandbox and budget are used. config: eval.Config. Every
        question has a seed of its own."""
        self.grow, self.config, self.asked = grow, config, 0

    async def run(self) -> None:
        """Serve until it is cancelled. Raises BadInput if the port is taken."""
        for engine, _ in (self.grow.designer, (self.grow.engine, None)):
            engine.live = -math.inf  # whoever asks is served as soon as the engine is free: nobody waits for another's script
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
                raise tasks.BadInput(
                    f"--port {self.config.port}: {error.strerror or error}"
                ) from None
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
        """A POST of {"question": TEXT}: the answer is the run so far, anew in every line, until it
        has ended."""
        try:
            text = (await request.json())["question"].strip()
            text.encode()  # half a character is not text
        except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError):
            raise web.HTTPBadRequest(text='a question is JSON: {"question": TEXT}') from None
        if not text:
            raise web.HTTPBadRequest(text="the question is empty")
        lines, self.asked = asyncio.Queue(), self.asked + 1
        answering = asyncio.ensure_future(
            self.answer(
                tasks.Question("asked", text, ""),
                (self.config.seed, "serve", self.asked),
                lines.put_nowait,
            )
        )
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

    async def answer(self, question, seed, send) -> None:
        """Design and execute; `send` gets the episode at every step. A failing engine is told, not
        raised."""
        (engine, designing), policy, config, executor = (
            self.grow.designer,
            self.grow.policy,
            self.config,
            self.grow.executor,
        )

        def shown(sampled=None, execution=None):
            rows = (
                []
                if sampled is None
                else [
                    pages.design_row(sampled, question, designing)
                    | {"executions": [pages.execution_row(execution, question, policy)]}
                ]
            )
            return {
                "step": None,
                "question": question.prompt,
                "family": "",
                "gold": "",
                "designs": rows,
            }

        try:
            send(shown())
            sampled = await design(
                engine, designing, question, seed, config.design_tokens, config.temperature
            )
            send(shown(sampled, Execution((), None, None)))
            watched = Executor(
                executor.engine,
                policy,
                executor.sandbox,
                executor.budget,
                executor.temperature,
                watch=lambda calls: send(shown(sampled, Execution(calls, None, None))),
            )
            send(shown(sampled, await watched.execute(sampled, question, (*seed, 0))))
        except EngineError as error:
            send({"error": str(error)})
