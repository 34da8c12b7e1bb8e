"""Samples: completions of a step with their advantages; split into mini-batches, dealt to ranks.

    trees --make_samples--> samples of a rank
    samples of all ranks --cut--> mini-batches, one optimizer step each --deal--> this rank's part

A rank whose questions teach nothing (all right or all wrong) would compute nothing while others
work. So each mini-batch is dealt out anew, in parts of about as many tokens. What has a common
beginning stays together, where it is computed once (prefix_sharing.py).

Test: `pytest tests/test_minibatches.py`. Read next: prefix_sharing.py.
"""

import os
from dataclasses import dataclass

import torch

from data_types import Sample, Tree
from lib.distributed import all_gather, rank, world_size
from lib.replay import call_advantages

MIN_SAMPLES = 16  # of a mini-batch; the original's mini-batches have as many


@dataclass(frozen=True)
class MiniBatch:
    """What one optimizer step learns from. The loss is the sum of each role's mean."""

    samples: list[Sample]  # this rank's part of those with a gradient
    role_tokens: dict[str, float]  # tokens of each role over all ranks, by Sample.weight
    num_trained: int  # tokens over all ranks that have a gradient

    @property
    def num_tokens(self) -> float:
        return sum(self.role_tokens.values())

    def weights_K(self, samples: list[Sample], like: torch.Tensor) -> torch.Tensor:
        """The weight of each token in sum(loss_K * weights_K) / num_tokens, so that this is the sum
        of each role's mean. 1 for one role alone, by tokens.

        samples: some of a micro-batch. like: a tensor of the device and the precision.
        """
        weights = []
        for s in samples:
            scale = self.num_tokens / self.role_tokens[s.role] if s.weight else 0.0
            weights += [s.weight * scale] * len(s.completion_ids)
        return like.new_tensor(weights)


def make_samples(
    trees: list[Tree], designer_adv_Q_M, executor_adv_Q_M_N, roles, loss_mean="token", replays={}
) -> list[Sample]:
    """The completions of `roles`, each with its trajectory's advantage; valid executions only.

    replays: (q, m, n) -> [Replay], by which calls have their own instead (lib/replay.py).
    """
    samples = []
    of_calls = call_advantages(trees, replays) if replays else {}

    def add(completions, advantages, role):  # those of a trajectory: a Design, or Calls
        num_tokens = sum(len(completion.completion_ids) for completion in completions)
        weight = 1 / num_tokens if loss_mean == "execution" and num_tokens else 1.0
        for c, advantage in zip(completions, advantages):
            sample = Sample(
                c.prompt_ids, c.completion_ids, c.logprobs, advantage.item(), role, weight
            )
            samples.append(sample)

    for q, tree in enumerate(trees):
        for m, (design, executions) in enumerate(zip(tree.designs, tree.executions)):
            is_valid = any(execution.valid for execution in executions)
            if "designer" in roles and is_valid and design.completion_ids:
                add([design], [designer_adv_Q_M[q, m]], "designer")
            for n, execution in enumerate(executions):
                if "executor" in roles and execution.valid:
                    shared, calls = executor_adv_Q_M_N[q, m, n], execution.calls
                    own = [of_calls.get((q, m, n, i), shared) for i in range(len(calls))]
                    add(calls, own, "executor")
    return samples


def make_minibatches(samples: list[Sample], count: int, keep_all: bool = False) -> list[MiniBatch]:
    """Up to `count` mini-batches of all ranks' samples. Collective.

    keep_all: samples without advantage have a gradient, too (that of a KL term).
    """
    samples = all_gather(samples)
    count = max(1, min(count, len(samples) // MIN_SAMPLES))
    minibatches = []
    for part in cut(samples, [len(sample) for sample in samples], count):
        role_tokens = {}
        for s in part:
            tokens = s.weight * len(s.completion_ids)
            role_tokens[s.role] = role_tokens.get(s.role, 0.0) + tokens
        trained = [sample for sample in part if keep_all or sample.advantage != 0]
        num_trained = sum(len(sample.completion_ids) for sample in trained)
        if trained:
            minibatches.append(MiniBatch(deal(trained), role_tokens, num_trained))
    return minibatches


def deal(samples: list[Sample]) -> list[Sample]:
    """This rank's part of what all ranks have."""
    if world_size() == 1:
        return samples
    ordered = sorted(samples, key=lambda sample: sample.prompt_ids + sample.completion_ids)
    costs, previous = [], ()
    for sample in ordered:  # a common beginning is computed once
        tokens = sample.prompt_ids + sample.completion_ids
        costs.append(len(tokens) - len(os.path.commonprefix([tokens, previous])) + 1)
        previous = tokens
    return cut(ordered, costs, world_size())[rank()]


def cut(items: list, costs: list[int], count: int) -> list[list]:
    """Consecutive parts of about equal cost.

    >>> cut(["a", "b", "c", "d"], [1, 1, 1, 3], 2)
    [['a', 'b', 'c'], ['d']]
    """
    parts = [[] for _ in range(count)]
    total, done = sum(costs), 0
    for item, cost in zip(items, costs):
        parts[int(count * (done + cost / 2) / total)].append(item)
        done += cost
    return parts
