"""The rollout against its engine alone: how much speed do scripts, tools and graders cost?

    python -m experiments.bench.rollout --questions 24
    python -m experiments.bench.rollout --engine vllm --questions 24
    python -m experiments.bench.rollout --model DIR --tasks rg:chain_sum --fixed-design debate \\
        --questions 4 --designs 4 --executions 4 --reply-tokens 64 --rounds 3

The last one is for a pretrained model, which writes no designs before a cold start.

Every round grows the trees of the questions: designs, scripts in sandboxes, tools, graders. The
requests that reach the engine are recorded. Then the same engine gets the same requests (prompts,
limits and seeds, so the same completions) as one static batch, with nothing else to do.

It prints the sampled tokens per second of both, and their ratio: 1 means that the rest of the
rollout costs nothing. It may be above 1, because the static batch pads short prompts to the longest
and the rollout's smaller batches do not. "In the engine" is the share of the rollout's time that
the engine samples. The last line has medians over the rounds, without the first. The goal is a
ratio of 0.9.
Test: by hand, the command above. Read next: sandbox.py.
"""

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch

import tasks
from data_types import Budget, Completion
from designer import FIXED_DESIGNS
from engines import open_engine
from executor import Runtime
from lib import cli
from lib.errors import UserError
from policy import Policy
from rollout import Rollout
from sandbox import Sandbox

MAX_LENGTH = 2048  # tokens of a prompt and its completion together
MAX_CALLS = 8  # of an execution


@dataclass(frozen=True)
class Config:
    engine: Literal["hf", "vllm"] = "hf"  # what samples
    model: str = "tiny"  # folder in Hugging Face format, or Hub id
    tasks: str = "arithmetic"  # sets whose training questions are asked
    questions: int = 12  # number of questions
    designs: int = 8  # designs per question
    executions: int = 4  # executions per design
    fixed_design: str | None = None  # hand-written design that is run instead of a sampled one
    design_tokens: int = 96  # max new tokens per design
    reply_tokens: int = 24  # max new tokens per agent reply
    gpu_memory: float = 0.5  # share of the memory that vllm takes; on a CPU a fifth of it
    rounds: int = 5  # number of rounds that count
    threads: int = 2  # number of CPU threads that torch uses


@dataclass(frozen=True)
class Speed:
    """What the engine did, and how long the whole took."""

    tokens: int
    seconds: float
    engine_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def engine_share(self) -> float:
        return self.engine_seconds / self.seconds


class RecordingEngine:
    """Hands requests to an engine, and keeps them."""

    def __init__(self, engine):
        self.engine = engine
        self.requests = []  # arguments of sample

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        request = (prompt_ids, max_tokens, seed, temperature)
        self.requests.append(request)
        return await self.engine.sample(*request)


async def measure(engine, work) -> Speed:
    """Await `work`, which samples from the engine."""
    tokens_before = engine.tokens
    engine_seconds_before = engine.seconds
    started = time.monotonic()
    await work
    return Speed(
        tokens=engine.tokens - tokens_before,
        seconds=time.monotonic() - started,
        engine_seconds=engine.seconds - engine_seconds_before,
    )


async def measure_round(config: Config, policy, engine, sandbox, number: int):
    """Returns (speed of the rollout, speed of the static batch)."""
    questions = tasks.load(config.tasks, "train", 0, config.questions)
    recorder = RecordingEngine(engine)
    budget = Budget(calls=MAX_CALLS, reply_tokens=config.reply_tokens)
    runtime = Runtime(recorder, policy, sandbox, budget)
    rollout = Rollout(runtime, design_tokens=config.design_tokens)
    seed = ("bench", number)

    trees = rollout.rollout(
        questions, config.designs, config.executions, seed, FIXED_DESIGNS.get(config.fixed_design)
    )
    tree_speed = await measure(engine, trees)
    await forget_prefixes(engine, policy)
    samples = [engine.sample(*request) for request in recorder.requests]
    static_speed = await measure(engine, asyncio.gather(*samples))
    await forget_prefixes(engine, policy)

    if config.engine == "hf":
        assert tree_speed.tokens == static_speed.tokens, "the same requests, other completions"
    ratio = tree_speed.tokens_per_second / static_speed.tokens_per_second
    print(
        f"round {number}: {len(samples)} requests; tree {tree_speed.tokens_per_second:7.0f} "
        f"tokens/s ({tree_speed.engine_share:.0%} of the time in the engine), "
        f"static batch {static_speed.tokens_per_second:7.0f} tokens/s, ratio {ratio:.2f}",
        flush=True,
    )
    return tree_speed, static_speed


async def forget_prefixes(engine, policy) -> None:
    """Empty vLLM's prefix cache, as between two training steps."""
    await engine.sleep()
    engine.update_weights(policy.model.state_dict().items())


async def measure_rounds(config: Config) -> None:
    policy = Policy(cli.model_path(config.model), max_length=MAX_LENGTH)
    engine = open_engine(config.engine, policy, gpu_memory=config.gpu_memory)
    ratios = []
    engine_shares = []
    async with Sandbox() as sandbox:
        await measure_round(config, policy, engine, sandbox, number=0)  # warms up: not counted
        for number in range(1, config.rounds + 1):
            speeds = await measure_round(config, policy, engine, sandbox, number)
            tree_speed, static_speed = speeds
            ratios.append(tree_speed.tokens_per_second / static_speed.tokens_per_second)
            engine_shares.append(tree_speed.engine_share)
    engine.close()
    print(
        f"{config.engine}, {config.model}: median ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), median share of the tree's time in the "
        f"engine {statistics.median(engine_shares):.1%}"
    )


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Time the rollout and its engine alone.")
    if config.fixed_design is not None and config.fixed_design not in FIXED_DESIGNS:
        raise UserError(f"--fixed-design {config.fixed_design}: one of {', '.join(FIXED_DESIGNS)}")
    torch.set_num_threads(config.threads)
    asyncio.run(measure_rounds(config))


if __name__ == "__main__":
    cli.command(main)
