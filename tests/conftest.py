"""What the tests share: the tiny model, a sandbox, and engines whose replies are scripted."""

import asyncio
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
# Two tests run at the same time on two cores (README.md).
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Also where a shell started the tests in the background: what they start can be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

import tasks  # noqa: E402
import train  # noqa: E402
from config import Config  # noqa: E402
from data_types import Budget, Completion, Design, Question  # noqa: E402
from engines.hf import HFEngine  # noqa: E402
from executor import Executor, Runtime  # noqa: E402
from policy import Policy  # noqa: E402
from rollout import Rollout  # noqa: E402
from sandbox import Sandbox  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the folder ../shared with real data is not beside the checkout"
)

SMALL_RUN = [
    *("--questions", "6", "--designs", "2", "--executions", "2"),
    *("--eval-size", "2", "--phase-steps", "2", "--lr-schedule", "constant"),
]
QUESTION = Question("q", "What is 6 * 7?", "42", family="compute")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "alone: counts the machine's processes or holds a time limit, so that nothing may run "
        "beside it",
    )


class Half(bytes):
    """Half of a server's answer, after which it hangs up."""


class Scripted:
    """An engine whose replies come from `speak(prompt as text)`: a text, or an error to raise."""

    def __init__(self, policy, speak):
        self.policy = policy
        self.speak = speak
        self.prompts = []
        self.tokens = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0):
        tokenizer = self.policy.tokenizer
        prompt = tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        text = self.speak(prompt)
        if isinstance(text, BaseException):
            raise text
        ids = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
        ids = ids[:max_tokens]
        truncated = ids[-1] != tokenizer.eos_token_id
        return Completion(ids, (-0.5,) * len(ids), text, truncated)

    async def sleep(self):
        pass

    def update_weights(self, weights):
        pass


@pytest.fixture(scope="session")
def policy():
    return Policy(str(ROOT / "tiny"))


def lines(out):
    """The metrics of a run, as far as it is."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learner(**changes) -> train.Learner:
    """A learner of the tiny model."""
    policy = Policy(str(ROOT / "tiny"))
    both = {"designer", "executor"}
    return train.Learner(Config(**changes), policy, HFEngine(policy), both)


def prompts(policy, count):
    """Prompts of different questions."""
    questions = tasks.load("registry", "train", 0, count)
    return [policy.render([{"role": "user", "content": q.prompt}]) for q in questions]


def execute(policy, script, speak, question=QUESTION, budget=Budget()):
    """One execution of `script` in the real sandbox: (execution, engine).

    speak: what every agent says, a function of the prompt, or an engine.
    """
    if hasattr(speak, "sample"):
        engine = speak
    else:
        engine = Scripted(policy, speak if callable(speak) else lambda prompt: speak)

    async def go():
        async with Sandbox() as sandbox:
            runtime = Runtime(engine, policy, sandbox, budget)
            return await Executor(runtime, question, ("test",)).execute(Design(script))

    return asyncio.run(go()), engine


def grow(
    policy,
    engine,
    questions,
    num_designs,
    num_executions,
    seed=("test",),
    fixed_design=None,
    budget=Budget(calls=8, reply_tokens=48),
):
    """Trees of `questions`, in the real sandbox."""

    async def go():
        async with Sandbox() as sandbox:
            runtime = Runtime(engine, policy, sandbox, budget)
            rollout = Rollout(runtime, design_tokens=96)
            return await rollout.rollout(questions, num_designs, num_executions, seed, fixed_design)

    return asyncio.run(go())


def with_rollout(policy, engine, work, budget=Budget(calls=12, reply_tokens=24)):
    """The result of `await work(rollout)` in a real sandbox."""

    async def go():
        async with Sandbox() as sandbox:
            return await work(Rollout(Runtime(engine, policy, sandbox, budget)))

    return asyncio.run(go())


@pytest.fixture
def server():
    """A chat API on loopback that answers as `behave(messages, number of the request)` says: a
    text, a status, raw bytes, or None: never."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(request)
                number = len(seen)
            answer = state["behave"](request["messages"], number)
            status, body = 200, answer
            if answer is None:
                stop.wait(5)
                return
            if isinstance(answer, int):
                status, body = (
                    answer,
                    json.dumps({"error": {"message": state.get("message", "no")}}).encode(),
                )
            elif isinstance(answer, str):
                body = json.dumps(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 1,
                        "model": "m",
                        "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
                        "choices": [
                            {
                                "index": 0,
                                "finish_reason": "stop",
                                "message": {"role": "assistant", "content": answer},
                            }
                        ],
                    }
                ).encode()
            self.reply(status, body)

        def reply(self, status, body):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            length = 2 * len(body) if isinstance(body, Half) else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    seen, state, lock, stop = (
        [],
        {"behave": lambda messages, number: "hi"},
        threading.Lock(),
        threading.Event(),
    )
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.update(url=f"http://127.0.0.1:{httpd.server_port}/v1", seen=seen)
    yield state
    stop.set()
    httpd.shutdown()
    httpd.server_close()
