"""What the tests share: the tiny model, a sandbox, and engines whose replies are scripted."""
import asyncio
import json
import pathlib
import shutil
import signal
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started the tests in the background: what they start can be interrupted

import tasks  # noqa: E402
from executor import Budget, Executor  # noqa: E402
import train  # noqa: E402
from learner import Learner  # noqa: E402
from policy import Completion, Policy  # noqa: E402
from rollout import Rollout  # noqa: E402
from sandbox import Sandbox  # noqa: E402
from tasks import Question  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared with real data is not beside the checkout")


class Scripted:
    """An engine whose replies come from `speak(prompt as text)`: a text, or an exception to raise."""

    def __init__(self, policy, speak):
        self.policy, self.speak, self.prompts, self.tokens, self.seconds = policy, speak, [], 0, 0.0

    async def gather(self, *coroutines):
        return list(await asyncio.gather(*coroutines))

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0):
        prompt = self.policy.tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        text = self.speak(prompt)
        if isinstance(text, BaseException):
            raise text
        ids = (*self.policy.tokenizer.encode(text, add_special_tokens=False), self.policy.tokenizer.eos_token_id)[:max_tokens]
        return Completion(ids, (-0.5,) * len(ids), text, truncated=ids[-1] != self.policy.tokenizer.eos_token_id)


@pytest.fixture(scope="session")
def policy():
    return Policy(str(ROOT / "tiny"))


SMALL_RUN = ["--questions", "6", "--designs", "2", "--executions", "2", "--eval-size", "2", "--threads", "1", "--phase-steps", "2"]


def lines(out):
    """The metrics of a run, as far as it is."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learner(**changes):
    return Learner(Policy(str(ROOT / "tiny")), train.Config(**changes))


QUESTION = Question("q", "What is 6 * 7?", "42", family="compute")


def prompts(policy, count):
    return [policy.render([{"role": "user", "content": q.prompt}]) for q in tasks.arithmetic("train", 0, count)]


def execute(policy, script, speak, question=QUESTION, budget=Budget()):
    """One execution of `script` with scripted agents, in the real sandbox. Returns (execution, engine)."""
    engine = speak if hasattr(speak, "sample") else Scripted(policy, speak if callable(speak) else lambda prompt: speak)

    async def go():
        async with Sandbox() as sandbox:
            from designer import Design
            return await Executor(engine, policy, sandbox, budget).execute(Design(script), question, ("test",))

    return asyncio.run(go()), engine


def grow(policy, engine, questions, designs, executions, seed=("test",), fixed=None, budget=Budget(calls=8, reply_tokens=48)):
    """Trees of `questions`, in the real sandbox."""

    async def go():
        async with Sandbox() as sandbox:
            return await Rollout(engine, policy, sandbox, budget, 96)(questions, designs, executions, seed, fixed)

    return asyncio.run(go())
