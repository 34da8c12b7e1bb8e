"""A real server with the OpenAI chat API, for tests and demonstrations: a model of this project.

    python tests/chat_server.py tiny 8000

It serves one model by engine hf, without streaming.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from aiohttp import web

from engines.hf import HFEngine
from lib import cli
from policy import Policy


class Server:
    def __init__(self, model: str):
        self.model = model
        self.policy = Policy(cli.model_path(model))
        self.engine = HFEngine(self.policy)
        self.engine.in_rounds = False  # others may ask at any time

    async def models(self, request: web.Request) -> web.Response:
        served = {"id": self.model, "object": "model", "created": 0, "owned_by": "local"}
        return web.json_response({"object": "list", "data": [served]})

    async def complete(self, request: web.Request) -> web.Response:
        asked = await request.json()
        prompt_ids = self.policy.render(asked["messages"])
        limits = asked["max_tokens"], asked["seed"], asked["temperature"]
        completion = await self.engine.sample(prompt_ids, *limits)
        choice = {
            "index": 0,
            "finish_reason": "length" if completion.truncated else "stop",
            "message": {"role": "assistant", "content": completion.text},
        }
        counts = len(prompt_ids), len(completion.ids)
        names = "prompt_tokens", "completion_tokens", "total_tokens"
        return web.json_response(
            {
                "id": "chat",
                "object": "chat.completion",
                "created": 0,
                "model": self.model,
                "choices": [choice],
                "usage": dict(zip(names, (*counts, sum(counts)))),
            }
        )


def main(model: str, port: str) -> None:
    server = Server(model)
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.complete)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
