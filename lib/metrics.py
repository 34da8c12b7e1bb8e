"""Metrics: what kind of system a script sets up, and what a step's executions say.

Test: `pytest tests/test_metrics.py`. Read next: records.py.
"""

import hashlib
import re
import time
from collections import Counter
from dataclasses import dataclass

import torch

from credit import as_tensors, design_rewards
from data_types import Question, Tree
from lib.distributed import all_reduce_max, all_reduce_sum, world_size
from lib.prices import cost
from lib.shapes import shape_hash

BLOCKS = ("debate", "reflect", "route", "vote", "judge", "ask_all")
# The kinds of design that the paper counts, and the script's own loops.
KIND_OF = {
    "single": "single",
    "vote": "ensemble",
    "judge": "ensemble",
    "ask_all": "ensemble",
    "reflect": "reflection",
    "debate": "debate",
    "loop": "own loop",
}
KINDS = (*dict.fromkeys(KIND_OF.values()), "other")


def structure(script: str) -> str:
    """Which kind of system a script sets up, by the blocks that it names.

    With none of them, by its own loops and agents.

    >>> structure("submit(vote([Agent('a', 'b', tools=['python'])] * 3, question))")
    'vote+python'
    >>> structure("for n in range(3):\\n    reply = Agent('a', 'b')(question)")
    'loop'
    """
    named = [block for block in BLOCKS if f"{block}(" in script]  # fast, and mostly enough
    blocks = [block for block in named if re.search(rf"\b{block}\(", script)]
    if blocks:
        kind = blocks[0]
    elif "Agent(" not in script:
        kind = "none"
    elif re.search(r"^[ \t]*(for|while)\b", script, re.MULTILINE):
        kind = "loop"
    else:
        kind = "sequence" if script.count("Agent(") > 1 else "single"
    has_python = re.search(r"tools\s*=\s*[\[(]\s*[\"']python", script)
    return kind + "+python" if has_python else kind


def kind_of(structure_name: str) -> str:
    """
    >>> kind_of("vote+python"), kind_of("single"), kind_of("sequence")
    ('ensemble', 'single', 'other')
    """
    return KIND_OF.get(structure_name.split("+")[0], "other")


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def unique_name(question: Question) -> str:
    """A name that no other question has, whatever ids a file gives."""
    text = f"{question.prompt}\n{question.answer}"
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return f"{question.id} {digest[:12]}"


def eval_score(question: Question, reward: float) -> float:
    """What a reward counts in an evaluation: a program has to pass all tests."""
    return float(reward == 1.0) if question.kind == "code" else reward


@dataclass(frozen=True)
class ExecutionStats:
    """One execution: all that the metrics need, and what ranks exchange."""

    question: str
    family: str
    design_index: int
    structure: str
    shape: str  # of the design; lib/shapes.py
    status: str
    reward: float
    cost: float  # what its tokens cost, in rewards; lib/prices.py
    eval_score: float
    num_calls: int
    num_agents: int
    design_entropy: float  # mean -log p of the design's tokens
    call_entropy: float  # of the calls' tokens

    @property
    def valid(self) -> bool:
        return self.status != "infra_error"

    @property
    def script_runs(self) -> bool:
        return self.status not in ("invalid_script", "crashed")


def execution_stats(trees: list[Tree]) -> list[ExecutionStats]:
    """One small record per execution."""
    stats = []
    for tree in trees:
        question = tree.question
        for m, (design, executions) in enumerate(zip(tree.designs, tree.executions)):
            for execution in executions:
                call_logprobs = [p for call in execution.calls for p in call.logprobs]
                stats.append(
                    ExecutionStats(
                        question=unique_name(question),
                        family=question.family,
                        design_index=m,
                        structure=structure(design.script),
                        shape=shape_hash(question.prompt, design.script),
                        status=execution.status,
                        reward=execution.reward,
                        cost=cost(question, design, execution),
                        eval_score=eval_score(question, execution.reward),
                        num_calls=len(execution.calls),
                        num_agents=len({call.agent for call in execution.calls}),
                        design_entropy=-mean(design.logprobs),
                        call_entropy=-mean(call_logprobs),
                    )
                )
    return stats


def rollout_metrics(stats: list[ExecutionStats], shown: frozenset | None = None) -> dict:
    """The metrics of a step's rollout; docs/run_folder.md explains each.

    shown: the shapes of designs in the cold start, if they are known.
    """
    valid = [s for s in stats if s.valid]
    spoke = [s for s in valid if s.num_calls]
    rewards_of_design, rewards_of_question = {}, {}
    for s in valid:
        rewards_of_design.setdefault((s.question, s.design_index), []).append(s.reward)
        rewards_of_question.setdefault(s.question, []).append(s.reward - s.cost)
    return {
        "reward": mean(s.reward for s in valid),
        "cost": mean(s.cost for s in valid),
        "designer_reward": mean(mean(rewards) for rewards in rewards_of_design.values()),
        "executor_reward": mean(s.reward for s in spoke),
        "valid_designs": mean(s.script_runs for s in valid),
        "calls": mean(s.num_calls for s in valid),
        "agents": mean(s.num_agents for s in valid),
        "design_entropy": mean(s.design_entropy for s in valid),
        "call_entropy": mean(s.call_entropy for s in spoke),
        "frac_reward_zero_std": mean(len(set(r)) == 1 for r in rewards_of_question.values()),
        "infra_errors": len(stats) - len(valid),
        "statuses": dict(Counter(s.status for s in stats)),
        "structures": dict(Counter(s.structure for s in stats)),
        **design_metrics(valid, shown),
    }


def net_accuracy(evaluation: dict) -> float:
    """Accuracy at temperature 0 less what tokens cost there: what the best model is chosen by."""
    return evaluation["eval_greedy"] - evaluation.get("eval_cost", 0.0)


def start_of(first: dict) -> dict:
    """The evaluation from before the first step, of the first line of metrics.jsonl."""
    return first.get("eval_start", first)


def design_metrics(stats: list[ExecutionStats], shown: frozenset | None) -> dict:
    """How many shapes of designs there are, and what those are worth that nobody has shown."""
    distinct = {(s.question, s.design_index): s.shape for s in stats}
    metrics = {"shapes": 100 * len(set(distinct.values())) / max(1, len(distinct))}
    if shown is None:
        return metrics
    new = [s for s in stats if s.shape not in shown]
    right = [s for s in stats if s.eval_score == 1.0]
    return metrics | {
        "new_designs": len(new) / max(1, len(stats)),
        "new_reward": mean(s.reward for s in new),
        "shown_reward": mean(s.reward for s in stats if s.shape in shown),
        "new_among_right": mean(s.shape not in shown for s in right),
    }


def by_family(stats: list[ExecutionStats]) -> dict:
    """Each family's accuracy, and how often each kind of design was chosen."""
    families = {}
    for family in sorted({s.family for s in stats}):
        members = [s for s in stats if s.family == family]
        families[family] = {
            "accuracy": mean(s.eval_score for s in members),
            "designs": dict(Counter(s.structure for s in members).most_common()),
        }
    return families


def variance_split(rewards_Q_M_N, valid_Q_M_N=None) -> tuple[float, float]:
    """The reward's variance within a question: (between its designs, within a design).

    Law of total variance, averaged over questions; the sum is the total. The first is what the
    designer learns from, with luck in it: about 1 / (N - 1) of the second, the luck of a run.

    >>> variance_split(torch.tensor([[[1., 0.], [1., 1.]]]))
    (0.0625, 0.125)
    """
    rewards, valid = as_tensors(rewards_Q_M_N, valid_Q_M_N)
    mean_Q_M, _ = design_rewards(rewards, valid)
    count_Q = valid.sum((1, 2)).clamp(min=1)
    mean_Q = torch.where(valid, rewards, 0.0).sum((1, 2)) / count_Q
    between_Q_M = (mean_Q_M - mean_Q[:, None]).square() * valid.sum(2)
    within_Q_M_N = torch.where(valid, (rewards - mean_Q_M[..., None]).square(), 0.0)
    between_Q = between_Q_M.sum(1) / count_Q
    within_Q = within_Q_M_N.sum((1, 2)) / count_Q
    return between_Q.mean().item(), within_Q.mean().item()


def variance_metrics(rewards_Q_M_N, valid_Q_M_N) -> dict:
    """`variance_split` as metrics, a mean over the ranks."""
    between, within = variance_split(rewards_Q_M_N, valid_Q_M_N)
    return {
        "variance_between_designs": all_reduce_sum(between) / world_size(),
        "variance_within_designs": all_reduce_sum(within) / world_size(),
    }


def mismatch(logprobs_K, sampler_logprobs_K) -> dict:
    """How far the trainer's log-probabilities are from the sampler's, under the same weights.

    Sums of |difference| and of the k3 estimate of KL(sampler || trainer), and the largest
    |difference|.

    >>> gap = mismatch(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.5]))
    >>> {name: round(value.item(), 3) for name, value in gap.items()}
    {'mismatch_mean': 0.5, 'mismatch_max': 0.5, 'mismatch_kl': 0.107}
    """
    with torch.no_grad():
        gap_K = logprobs_K - sampler_logprobs_K
        return {
            "mismatch_mean": gap_K.abs().sum(),
            "mismatch_max": gap_K.abs().max(),
            "mismatch_kl": (gap_K.exp() - gap_K - 1).sum(),
        }


class LossStats:
    """Sums over the tokens of an update, and maxima (names that end in _max); the steps' losses."""

    NAMES = (
        "loss",
        "ratio",
        "clip_frac",
        "approx_kl",
        "entropy",
        "mismatch_mean",
        "mismatch_kl",
        "mismatch_max",
    )

    def __init__(self):
        self.sums = dict.fromkeys(self.NAMES, 0.0)

    def add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            if name.endswith("_max"):
                self.sums[name] = max(self.sums[name], value.item())
            else:
                self.sums[name] += value.item()

    def means(self, num_steps: int, num_trained_tokens: float) -> dict:
        """Means over the trained tokens of all ranks; the loss over the optimizer's steps."""
        means = {"loss": all_reduce_sum(self.sums["loss"]) / max(num_steps, 1)}
        for name in self.NAMES[1:]:
            if name.endswith("_max"):
                means[name] = all_reduce_max(self.sums[name])
            else:
                means[name] = all_reduce_sum(self.sums[name]) / max(num_trained_tokens, 1)
        return means


def merge_updates(updates: list[dict]) -> dict:
    """The metrics of one update of each model: sums, maxima, and means over those that learned."""
    learned = [update for update in updates if update["trained_tokens"]] or updates[:1]
    how = {"trained_tokens": sum, "skipped": max, "mismatch_max": max}
    return {name: how.get(name, mean)([u[name] for u in learned]) for name in updates[0]}


class Clock:
    """Where a step's time goes: rollout, slower ranks, update; in the rollout, sampling, waiting.

    Waiting is time in which this process had nothing to do but wait for scripts, tools and graders.
    """

    def __init__(self, engines: list):
        self.engines = engines
        self.start()

    def start(self) -> None:
        self.started = self.lap_started = time.monotonic()
        self.cpu_started = time.thread_time()
        self.tokens, self.sampling, self.sampling_cpu = self.engine_totals()
        self.seconds = {}

    def engine_totals(self) -> list[float]:
        names = ("tokens", "seconds", "cpu_seconds")
        return [sum(getattr(engine, name) for engine in self.engines) for name in names]

    def lap(self, name: str) -> None:
        """`name` ends now; it began with the lap before."""
        now = time.monotonic()
        self.seconds[f"seconds_{name}"] = now - self.lap_started
        self.lap_started = now
        if name == "rollout":
            _, sampling, sampling_cpu = self.engine_totals()
            sampling -= self.sampling
            busy = time.thread_time() - self.cpu_started - (sampling_cpu - self.sampling_cpu)
            idle = self.seconds["seconds_rollout"] - sampling - busy
            self.seconds["seconds_sampling"] = sampling
            self.seconds["seconds_waiting"] = max(0.0, idle)  # with vLLM, busy and sampling overlap

    def metrics(self) -> dict:
        tokens = self.engine_totals()[0] - self.tokens
        return {
            "seconds": time.monotonic() - self.started,
            **self.seconds,
            "tokens": int(all_reduce_sum(tokens)),
        }
