"""Is replay credit right? Against the exact Shapley value of every call, in the tiny world.

    python -m experiments.shapley --out experiments/results/shapley.json    ten minutes of a core

The players of the game are the calls of one execution. v(S) is the expected reward where the calls
of S say what they said, and all others are drawn again from the model; the Shapley value of a call
is what it adds to v on average over all orders. Replies are short here, so everything that the
agents might say can be enumerated, and v is a sum and not an estimate.

Compared with it, over the best design of each question and the untrained executor:

    execution      reward - mean reward of its group: one number for all calls
    replay         lib/replay.py, calls without a replay with their execution's number
    leave one out  reward - v(all calls but this one), exactly: what replays estimate

The groups of `execution` are larger, by as many tokens as the replays' calls have from the redrawn
one on; of these, what is asked as before is not even sampled.

Test: `pytest tests/test_shapley.py`. Read next: run.py.
"""

import asyncio
import itertools
import json
import math
import pathlib
import statistics
from dataclasses import asdict, dataclass, replace

import numpy
import torch

import mas
import tasks
from data_types import Budget, Completion, Design, Execution, Question, seed_of
from engines.hf import HFEngine
from executor import Runtime
from lib import cli
from lib.errors import EngineError, UserError
from lib.files import atomic_write
from lib.replay import MAX_REPLAYS, call_differences, name_of, replay_calls
from policy import Policy
from rollout import Rollout
from sandbox import Outcome, Sandbox
from tiny import registry

MIN_REPLY = 0.004  # rarer replies are taken together, as one that says nothing
MIN_PATH = 0.0005  # rarer executions count as wrong
NOTHING = Completion((), (), "")
MAX_CALLS = 8  # of an execution: 2 ** MAX_CALLS coalitions


@dataclass(frozen=True)
class Config:
    model: str = "tiny"  # who executes
    questions: int = 25  # held-out questions
    executions: int = 4  # of each, with replays
    seed: int = 0  # random seed for questions and sampling
    out: str | None = None  # JSON file of the results


# ---------------------------------------------------------------------- the same thing many times


class OwnScript:
    """A session with a script of ours in this process: for each message it runs from its start."""

    def __init__(self, code, variables: dict):
        self.code = code
        self.variables = variables
        self.answers = []

    async def receive(self) -> dict | None:
        answers = iter(self.answers)

        def request(message: dict) -> dict:
            try:
                return next(answers)
            except StopIteration:
                raise Waiting(message) from None

        mas._request, mas._agent_numbers = request, itertools.count()
        try:
            exec(self.code, vars(mas) | self.variables)
        except Waiting as waiting:
            return waiting.args[0]
        return None

    async def send(self, answer: dict) -> None:
        self.answers.append(answer)

    def kill(self) -> None:
        pass

    async def finish(self) -> Outcome:
        return Outcome("ok", "", "", 0.0, "none")


class Waiting(Exception):
    """The script has sent a message that nobody has answered yet."""


class OwnScripts:
    """A sandbox for designs of ours alone; what an agent's tool runs is boxed, each code once."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self.known = {}

    async def talk(self, script: str, variables: dict, limits) -> OwnScript:
        return OwnScript(compile(script, "design", "exec"), variables)

    async def run(self, code: str, **options) -> Outcome:
        if code not in self.known:
            self.known[code] = await self.sandbox.run(code, **options)
        return self.known[code]


class CachingRollout(Rollout):
    """Grades an answer once."""

    grades = {}

    async def reward_of(self, question: Question, answer: str) -> float:
        key = question.id, answer
        if key not in self.grades:
            self.grades[key] = await super().reward_of(question, answer)
        return self.grades[key]


# ------------------------------------------------------------------------ all that might be said


@dataclass
class Node:
    """A call that is about to be made, and what follows each of its replies; or an end."""

    name: tuple[int, int] | None = None  # number of its ask, turn
    prompt_ids: tuple[int, ...] = ()
    branches: list = None  # (probability, completion ids, Node)
    reward: float = 0.0  # of an end


class Replies:
    """What a model says to a prompt: every reply of at least MIN_REPLY, with its probability."""

    def __init__(self, policy: Policy, max_tokens: int):
        self.policy = policy
        self.max_tokens = max_tokens
        self.known = {}

    @torch.no_grad()
    def to(self, prompt_ids) -> list[tuple[float, Completion]]:
        if prompt_ids in self.known:
            return self.known[prompt_ids]
        unfinished, found = [((), 0.0)], []  # (token ids, log-probability)
        for _ in range(self.max_tokens):
            if not unfinished:
                break
            rows = torch.tensor([[*prompt_ids, *ids] for ids, _ in unfinished])
            logits_B_V = self.policy.model(input_ids=rows).logits[:, -1]
            logprobs_B_V = torch.log_softmax(logits_B_V, -1)
            longer = []
            for (ids, total), logprobs_V in zip(unfinished, logprobs_B_V):
                for token in (logprobs_V + total >= math.log(MIN_REPLY)).nonzero()[:, 0].tolist():
                    reply = (*ids, token), total + logprobs_V[token].item()
                    (found if token in self.policy.end_ids else longer).append(reply)
            unfinished = longer
        replies = []
        for ids, logprob in found + unfinished:  # the latter: cut off
            completion = Completion(ids, (0.0,) * len(ids), self.policy.text(ids))
            replies.append((math.exp(logprob), completion))
        self.known[prompt_ids] = replies
        return replies


class Forced:
    """An engine that says what it is told; a call for which it was told nothing is `missing`."""

    def __init__(self, told: dict, names: dict):
        self.told = told  # name of a call -> completion
        self.names = names  # seed -> name of the call
        self.missing = {}

    async def sample(self, prompt_ids, max_tokens, seed, temperature=1.0) -> Completion:
        name = self.names[seed]
        if name not in self.told:
            self.missing[name] = prompt_ids
            raise EngineError("not told")
        return self.told[name]


async def enumerate_paths(
    rollout: Rollout, design: Design, question: Question, replies: Replies, executions=()
) -> Node:
    """The tree of all that might happen. In it the first missing call of a round comes first.

    executions: those whose calls are valued. What they said is in the tree, however rare, and what
    comes after it as if it were certain: it is, where the call is kept.
    """
    said = {}  # name and prompt of a call -> the token ids of replies -> call
    for execution in executions:
        for call in execution.calls:
            place = said.setdefault((name_of(call), call.prompt_ids), {})
            place[call.completion_ids] = call
    calls = rollout.runtime.budget.calls
    names = {seed_of("x", n, turn): (n, turn) for n in range(calls) for turn in range(calls)}
    many = asyncio.Semaphore(32)

    async def grow(told: dict, probability: float) -> Node:
        engine = Forced(told, names)
        runtime = replace(rollout.runtime, engine=engine)
        async with many:
            once = CachingRollout(runtime)
            execution = await once.rollout_execution(design, question, ("x",))
        if not engine.missing:
            return Node(reward=execution.reward)
        name = min(engine.missing)
        node = Node(name, engine.missing[name], [])
        kept = said.get((name, node.prompt_ids), {})
        branches = []  # (probability, completion, probability of the path with it)
        for ids, call in kept.items():
            completion = Completion(ids, call.logprobs, call.text)
            branches.append((math.exp(sum(call.logprobs)), completion, probability))
        for p, completion in replies.to(node.prompt_ids):
            if completion.ids not in kept and p * probability >= MIN_PATH:
                branches.append((p, completion, p * probability))
        rest = 1 - sum(p for p, *_ in branches)
        if rest * probability >= MIN_PATH:
            branches.append((rest, NOTHING, rest * probability))
        children = await asyncio.gather(
            *(grow(told | {name: completion}, path) for _, completion, path in branches)
        )
        for (p, completion, _), child in zip(branches, children):
            node.branches.append((p, completion.ids, child))
        return node

    return await grow({}, 1.0)


# ----------------------------------------------------------------------------- the exact value


def value(node: Node, execution: Execution, kept: frozenset) -> float:
    """v: the expected reward where the calls of the execution in `kept` say what they said."""
    if node.branches is None:
        return node.reward
    if node.name in kept:
        for call in execution.calls:
            if name_of(call) == node.name and call.prompt_ids == node.prompt_ids:
                for _, ids, child in node.branches:
                    if ids == call.completion_ids:
                        return value(child, execution, kept)
    return sum(p * value(child, execution, kept) for p, _, child in node.branches)


def shapley_values(names: list, v) -> list[float]:
    """What each player adds to v(set of players), on average over all orders.

    >>> shapley_values(["a", "b", "c"], lambda kept: float({"a", "b"} <= kept))
    [0.5, 0.5, 0.0]
    """
    count = len(names)
    # A set of players is a number s: bit i says whether player i is in it.
    values = [v(frozenset(n for i, n in enumerate(names) if s >> i & 1)) for s in range(1 << count)]
    found = []
    for i in range(count):
        total = 0.0
        for s in range(1 << count):
            if not s >> i & 1:
                size = s.bit_count()
                # The share of all orders in which just these players come before i.
                weight = math.factorial(size) * math.factorial(count - size - 1)
                total += weight / math.factorial(count) * (values[s | 1 << i] - values[s])
        found.append(total)
    return found


# ------------------------------------------------------------------------------- the estimates


async def measure(config: Config) -> list[dict]:
    """A row per call: its exact value, and what each estimate says."""
    policy = Policy(cli.model_path(config.model))
    budget = Budget(calls=12, reply_tokens=24)
    rows = []
    async with Sandbox() as sandbox:
        scripts = OwnScripts(sandbox)
        rollout = CachingRollout(Runtime(HFEngine(policy), policy, scripts, budget))
        replies = Replies(policy, budget.reply_tokens)
        for question in tasks.load("registry", "heldout", config.seed, config.questions):
            rows += await measure_question(rollout, replies, question, config)
    return rows


async def measure_question(rollout, replies, question: Question, config: Config) -> list[dict]:
    design, seed = Design(registry.best_design(question)), (config.seed, "shapley")
    N = config.executions * (1 + MAX_REPLAYS)  # as many tokens as replays would take, at most
    (tree,) = await rollout.rollout([question], 1, N, seed, design.script)
    first = replace(tree, executions=(tree.executions[0][: config.executions],))
    replays = await replay_calls([first], rollout, seed)
    root = await enumerate_paths(rollout, design, question, replies, first.executions[0])

    own_tokens = sum(num_tokens(e) for e in first.executions[0])
    replay_tokens = sum(
        num_tokens(r.execution, after=first.executions[0][n].calls[r.call])
        for (_, _, n), others in replays.items()
        for r in others
    )
    num_fair = round(config.executions * (1 + replay_tokens / max(1, own_tokens)))
    baseline = statistics.fmean(e.reward for e in tree.executions[0][:num_fair])
    rows = []
    for n, execution in enumerate(first.executions[0]):
        if not 2 <= len(execution.calls) <= MAX_CALLS:
            continue
        names = [name_of(call) for call in execution.calls]
        everyone = frozenset(names)
        assert value(root, execution, everyone) == execution.reward
        exact = shapley_values(names, lambda kept: value(root, execution, kept))
        by_replay = call_differences(execution.reward, replays.get((0, 0, n), []))
        for i, name in enumerate(names):
            of_execution = execution.reward - baseline
            left_out = value(root, execution, everyone - {name})
            rows.append(
                {
                    "question": question.id,
                    "execution": n,
                    "call": i,
                    "reward": execution.reward,
                    "exact": exact[i],
                    "execution's": of_execution,
                    "replay": by_replay.get(i, of_execution),
                    "leave one out": execution.reward - left_out,
                    "extra tokens": replay_tokens / max(1, own_tokens),
                }
            )
    return rows


def num_tokens(execution: Execution, after=None) -> int:
    """Sampled tokens of an execution, or from a call on."""
    calls = execution.calls
    if after is not None:
        calls = [call for call in calls if name_of(call) >= name_of(after)]
    return sum(len(call.completion_ids) for call in calls)


def table(rows: list[dict], draws: int = 2000) -> str:
    """Correlation with the exact value, bias and error of each estimate; 95 % by bootstrap over
    questions."""
    by_question = {}
    for row in rows:
        by_question.setdefault(row["question"], []).append(row)
    groups = list(by_question.values())
    rng = numpy.random.default_rng(0)
    picks = [rng.integers(len(groups), size=len(groups)) for _ in range(draws)]
    lines = ["| credit | correlation with Shapley | bias | RMS error |", "|---|---|---|---|"]
    for name in ("execution's", "replay", "leave one out"):
        cells = []
        for statistic in (correlation, bias, error):
            samples = [statistic([row for g in pick for row in groups[g]], name) for pick in picks]
            low, high = numpy.nanpercentile(samples, [2.5, 97.5])
            cells.append(f"{statistic(rows, name):.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gains = []
    for pick in picks:
        chosen = [row for g in pick for row in groups[g]]
        gains.append(correlation(chosen, "replay") - correlation(chosen, "execution's"))
    low, high = numpy.nanpercentile(gains, [2.5, 97.5])
    gain = correlation(rows, "replay") - correlation(rows, "execution's")
    return "\n".join(
        [*lines, "", f"Replay - execution's: {gain:+.2f} ({low:+.2f} to {high:+.2f})."]
    )


def published() -> list[dict]:
    path = cli.ROOT / "experiments" / "results" / "shapley.json"
    return json.loads(path.read_text())["rows"]


def columns(rows: list[dict], name: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    return numpy.array([r[name] for r in rows]), numpy.array([r["exact"] for r in rows])


def correlation(rows: list[dict], name: str) -> float:
    estimate, exact = columns(rows, name)
    if not (estimate.std() and exact.std()):
        return math.nan
    return float(numpy.corrcoef(estimate, exact)[0, 1])


def bias(rows: list[dict], name: str) -> float:
    estimate, exact = columns(rows, name)
    return float((estimate - exact).mean())


def error(rows: list[dict], name: str) -> float:
    estimate, exact = columns(rows, name)
    return float(numpy.sqrt(numpy.square(estimate - exact).mean()))


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Replay credit against exact Shapley values.")
    if config.out and not pathlib.Path(config.out).parent.is_dir():
        raise UserError(f"--out {config.out}: its folder does not exist")
    rows = asyncio.run(measure(config))
    num_executions = len({(row["question"], row["execution"]) for row in rows})
    cli.log.info(f"{len(rows)} calls of {num_executions} executions\n{table(rows)}")
    if config.out:
        text = json.dumps({"config": asdict(config), "rows": rows})
        atomic_write(pathlib.Path(config.out), text + "\n")


if __name__ == "__main__":
    cli.command(main)
