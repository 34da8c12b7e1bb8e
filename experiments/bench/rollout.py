"""The tree against the engine's own speed: tokens per second of the whole rollout (designs,
scripts, sandboxes, tools, graders), and of the same engine fed the very same requests (prompts,
limits, seeds, so the same completions) as one static batch, in turn, in one process.

    python tests/bench_rollout.py --model tiny --questions 24
    python tests/bench_rollout.py --model smol-cold --questions 4 --executions 4 --designs 4 --reply-tokens 64 --tasks rg:chain_sum --rounds 3
    .venv-vllm/bin/python tests/bench_rollout.py --engine vllm --questions 24

Asked for: a ratio of 0.9 or more. Medians over the rounds, after one that is not counted.
"""

import argparse
import asyncio
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import cli  # noqa: E402
import torch  # noqa: E402

import tasks  # noqa: E402
from engines import open_engine  # noqa: E402
from executor import Budget  # noqa: E402
from policy import Policy  # noqa: E402
from rollout import Rollout  # noqa: E402
from sandbox import Sandbox  # noqa: E402


async def timed(engine, coroutine):
    """-> (tokens, seconds, of those seconds in the engine) of what it awaits."""
    tokens, inside, started = engine.tokens, engine.seconds, time.monotonic()
    await coroutine
    return engine.tokens - tokens, time.monotonic() - started, engine.seconds - inside


async def measure(arguments, policy, engine, sandbox):
    questions = tasks.load(arguments.tasks, "train", 0, arguments.questions)
    budget = Budget(calls=8, reply_tokens=arguments.reply_tokens)
    grow, requests, sample = (
        Rollout(engine, policy, sandbox, budget, arguments.design_tokens),
        [],
        engine.sample,
    )
    rows = []
    for number in range(arguments.rounds + 1):
        requests.clear()

        async def recorded(prompt_ids, max_tokens, seed, temperature=1.0):
            requests.append((prompt_ids, max_tokens, seed, temperature))
            return await sample(prompt_ids, max_tokens, seed, temperature)

        engine.sample = recorded
        tree = await timed(
            engine, grow(questions, arguments.designs, arguments.executions, ("bench", number))
        )
        engine.sample = sample
        await engine.pause()
        engine.sync(
            policy.model.state_dict().items()
        )  # vLLM: an empty prefix cache, as at the start of a step
        static = await timed(engine, engine.gather(*(sample(*request) for request in requests)))
        await engine.pause()
        engine.sync(policy.model.state_dict().items())
        assert tree[0] == static[0] or arguments.engine == "vllm", (
            "the same requests give the same completions"
        )
        rows.append((tree, static))
        print(
            f"round {number}: {len(requests)} requests; tree {tree[0] / tree[1]:7.0f} tokens/s ({tree[2] / tree[1]:.0%} of the time in the engine), "
            f"static batch {static[0] / static[1]:7.0f} tokens/s, ratio {tree[0] / tree[1] / (static[0] / static[1]):.2f}",
            flush=True,
        )
    ratios = [(tree[0] / tree[1]) / (static[0] / static[1]) for tree, static in rows[1:]]
    print(
        f"{arguments.engine}, {arguments.model}: median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"median share of the tree's time in the engine {statistics.median(tree[2] / tree[1] for tree, _ in rows[1:]):.1%}"
    )


async def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tasks", default="arithmetic")
    for name, default in (
        ("questions", 12),
        ("designs", 8),
        ("executions", 4),
        ("rounds", 5),
        ("design-tokens", 96),
        ("reply-tokens", 48),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = Policy(cli.model_path(arguments.model), max_length=2048)
    engine = open_engine(arguments.engine, policy)
    async with Sandbox() as sandbox:
        await measure(arguments, policy, engine, sandbox)
    engine.close()


if __name__ == "__main__":
    asyncio.run(main())
