"""Credit for each call: an execution is repeated with one reply drawn again.

    python train.py --executor-credit replay

Every call has a seed of its own, hashed from (run seed, step, question, m, n, call). Repeated with
all of them, an execution says the same, and the engine is not asked. With another reply of one
call, what depends on it is sampled anew, whatever path the script takes then: what would have
happened, and no critic's estimate of it. The other calls keep their seeds (common random numbers).
It holds as far as scripts and tools do the same when they run again.

    credit of a call = reward of its execution - mean reward of the replays in which it was redrawn

normalised over the replayed calls of a question, as advantages are. A call without a replay keeps
its execution's advantage. Cost: at most MAX_REPLAYS times the executions of the tree, each of which
samples what comes after its call. Source: ours; the difference is COMA's (arXiv 1705.08926), with
samples in the place of its critic.

Test: `pytest tests/test_replay.py`. Read next: resampling.py.
"""

import asyncio
import copy
import functools
import random
from dataclasses import dataclass, replace

import torch

from credit import normalise
from data_types import Completion, Execution, Tree, seed_of
from executor import Executor
from lib.cli import log
from lib.errors import InfrastructureError
from lib.metrics import mean
from lib.prices import cost, net_rewards

MAX_REPLAYS = 4  # of an execution


@dataclass(frozen=True)
class Replay:
    """What would have happened, had one call said something else."""

    call: int  # index of the call that was drawn again
    execution: Execution
    reward: float  # less what its tokens cost

    def said(self, original: Execution) -> str:
        """The other reply."""
        changed = original.calls[self.call]
        replies = [c.text for c in self.execution.calls if (c.number, c.turn) == name_of(changed)]
        return replies[0] if replies else ""


class ReplayEngine:
    """Says what an execution said wherever it is asked the same; else asks the engine."""

    def __init__(self, engine, execution: Execution, seed: tuple, others: dict = {}):
        """others: index of a call -> what it says instead."""
        self.engine = engine
        self.said = {}  # seed of a call -> (its prompt, what is said)
        for i, call in enumerate(execution.calls):
            said = Completion(call.completion_ids, call.logprobs, call.text, call.truncated)
            self.said[seed_of(*seed, *name_of(call))] = call.prompt_ids, others.get(i, said)

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        known_prompt, completion = self.said.get(seed, (None, None))
        if known_prompt == prompt_ids and len(completion.ids) <= max_tokens:
            return completion
        return await self.engine.sample(prompt_ids, max_tokens, seed, temperature)


def name_of(call) -> tuple[int, int]:
    """What a call's seed is made of, beside its execution's."""
    return call.number, call.turn


async def replay(rollout, question, design, execution, seed, others: dict = {}) -> Execution:
    """The execution again, graded; others: index of a call -> what it says instead.

    seed: the execution's, (run seed, step, question's id, m, n).
    """
    again = copy.copy(rollout)
    engine = ReplayEngine(rollout.runtime.engine, execution, seed, others)
    again.runtime = replace(rollout.runtime, engine=engine)
    return await again.rollout_execution(design, question, seed)


async def draw_again(rollout, call, seed: tuple, attempt: int) -> Completion:
    """Another reply to the call's prompt, by a seed that depends on attempt."""
    runtime = rollout.runtime
    return await runtime.engine.sample(
        call.prompt_ids,
        max_tokens=runtime.budget.reply_tokens,
        seed=seed_of(*seed, *name_of(call), "again", attempt),
        temperature=runtime.temperature,
    )


async def replay_calls(trees: list[Tree], rollout, seed: tuple, count: int = MAX_REPLAYS) -> dict:
    """`count` replays of every execution, over its calls in turn, in a random order of these.

    seed: the trees'. Returns (q, m, n) -> [Replay]. What fails or times out is left out, and said.
    """
    orders = {}  # (q, m, n) -> the calls of that execution, shuffled
    for q, tree in enumerate(trees):
        for m, executions in enumerate(tree.executions):
            for n, execution in enumerate(executions):
                calls = list(range(len(execution.calls)))
                random.Random(seed_of(*seed, tree.question.id, m, n, "replays")).shuffle(calls)
                if calls and execution.valid:
                    orders[q, m, n] = calls

    async def one(q: int, m: int, n: int, attempt: int) -> Replay | None:
        question, design = trees[q].question, trees[q].designs[m]
        execution, calls = trees[q].executions[m][n], orders[q, m, n]
        own_seed = (*seed, question.id, m, n)
        i = calls[attempt % len(calls)]  # each call in turn
        try:
            reply = await draw_again(rollout, execution.calls[i], own_seed, attempt)
        except InfrastructureError:
            return None
        other = execution  # where it says the same again, all is the same
        if reply.ids != execution.calls[i].completion_ids:
            other = await replay(rollout, question, design, execution, own_seed, {i: reply})
        if other.status in ("infra_error", "timeout"):
            return None
        return Replay(i, other, other.reward - cost(question, design, other))

    found, num_spoiled = {place: [] for place in orders}, 0
    for attempt in range(count):  # no more of them at the same time than there are executions
        replays = await asyncio.gather(*(one(*place, attempt) for place in orders))
        for place, result in zip(orders, replays):
            if result is None:
                num_spoiled += 1
            else:
                found[place].append(result)
    if num_spoiled:
        log.info(f"{num_spoiled} of {count * len(orders)} replays failed or timed out: left out")
    return found


def call_differences(reward: float, replays: list[Replay]) -> dict[int, float]:
    """call -> the execution's reward minus the mean of those in which the call was drawn again."""
    rewards = {}
    for other in replays:
        rewards.setdefault(other.call, []).append(other.reward)
    return {call: reward - sum(values) / len(values) for call, values in rewards.items()}


def call_advantages(trees: list[Tree], replays: dict) -> dict[tuple, torch.Tensor]:
    """(q, m, n, call) -> advantage, of every call that was drawn again."""
    rewards_Q_M_N = [net_rewards(tree) for tree in trees]
    differences = {}  # question -> (q, m, n, call) -> difference
    for (q, m, n), others in replays.items():
        for call, difference in call_differences(rewards_Q_M_N[q][m][n], others).items():
            differences.setdefault(q, {})[q, m, n, call] = difference
    advantages = {}
    for of_question in differences.values():
        values_1_S = torch.tensor([list(of_question.values())], dtype=torch.float64)
        normalised = normalise(values_1_S, torch.ones_like(values_1_S, dtype=torch.bool))
        advantages |= zip(of_question, normalised[0].float())
    return advantages


# -------------------------------------------------------------------- which agents earn their place


class WithoutAgent(Executor):
    """An executor for which the agent of one name only says what it is asked: a pass-through."""

    def __init__(self, *arguments, left_out: str):
        super().__init__(*arguments)
        self.left_out = left_out

    async def run_agent(self, ask, number: int) -> str:
        return ask.text if ask.name == self.left_out else await super().run_agent(ask, number)


async def without_agents(tree: Tree, rollout, seed: tuple) -> list[dict[str, float]]:
    """Of each design: agent -> the mean reward of its executions with that agent a pass-through.

    All calls keep their seeds; seed is the tree's. An agent without which it is no worse does not
    earn its place. Where all fail or time out, nothing is known, and said.
    """

    async def mean_reward(m: int, agent: str) -> float | None:
        executor = functools.partial(WithoutAgent, left_out=agent)
        seeds = [(*seed, tree.question.id, m, n) for n in range(len(tree.executions[m]))]
        executions = await asyncio.gather(
            *(rollout.rollout_execution(tree.designs[m], tree.question, s, executor) for s in seeds)
        )
        rewards = [e.reward for e in executions if e.status not in ("infra_error", "timeout")]
        return mean(rewards) if rewards else None

    found = []
    for m, executions in enumerate(tree.executions):
        agents = list(dict.fromkeys(call.agent for e in executions for call in e.calls))
        rewards = await asyncio.gather(*(mean_reward(m, agent) for agent in agents))
        found.append({a: reward for a, reward in zip(agents, rewards) if reward is not None})
    return found
