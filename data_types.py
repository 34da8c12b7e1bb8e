"""The life of a question on one page: the dataclasses that pass between files, in their order.

    Question     tasks.py      what is asked; the gold answer stays in the trainer
    Design       designer.py   a script that sets up agents for it, sampled from the model
    Ask          executor.py   what a running script wants an agent to do
    Call         executor.py   one completion of an agent, sampled from the same model
    Execution    executor.py   one run of a design: its calls, how it ended, its reward
    Tree         rollout.py    one question with its M designs and N executions of each
    Sample       minibatches   one completion to learn from, with its advantage

What the engine sampled is what GRPO's loss sees: no text is tokenised again.

Test: `pytest tests/test_rollout.py`. Read next: mas.py.
"""

import hashlib
import math
from dataclasses import dataclass, field

STATUSES = (
    "answered",  # the script submitted a reply: its reward is the grade of that reply
    "no_answer",  # the script ended without submit(...)
    "invalid_script",  # none, cut off, does not compile, wants a tool that is not offered
    "crashed",  # the script raised, or sent something that is not a message
    "budget",  # more calls or tokens than allowed, or a prompt of an agent too long
    "timeout",
    "infra_error",  # engine or sandbox failed: left out of every mean and group, and counted
)


@dataclass(frozen=True)
class Question:
    """A question. `answer` (the gold) reaches no prompt and no script."""

    id: str
    prompt: str
    answer: str
    kind: str = "math"  # "math"; "code", graded by `tests`; "rg", by reasoning-gym's own scorer
    family: str = ""  # which part of a set it belongs to
    tools: tuple[str, ...] = ("python",)  # what its agents may use; () is a closed-book question
    entry: dict | None = field(default=None, repr=False)  # reasoning-gym's own row
    tests: object = field(default=None, repr=False)  # benchmarks.code_grading.Suite
    price: float = 0.0  # of 1,000 sampled tokens, in rewards


@dataclass(frozen=True)
class Completion:
    """What an engine sampled, end token included. logprobs[i] = log p(ids[i] | prompt, ids[:i])."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool = False  # stopped by max_tokens or the context, not by an end token

    def __post_init__(self):
        if not all(map(math.isfinite, self.logprobs)):
            raise FloatingPointError("the model's output is not finite")


@dataclass(frozen=True)
class Design:
    """One sampled design. `error` says why there is no script to run; "" if there is one."""

    script: str
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    error: str = ""
    text: str = ""  # the whole completion; the script is a part of it


@dataclass(frozen=True)
class Budget:
    """What one execution may use, over all its agents together."""

    calls: int = 16  # completions
    tokens: int = 65_536  # sampled tokens; agents asked at once may go beyond
    reply_tokens: int = 1024  # new tokens of one completion
    seconds: float = 1800.0  # from start to end, waiting for the engine included
    script_seconds: float = 5.0  # running time of the script itself
    tool_seconds: float = 5.0  # running time of one tool call


@dataclass(frozen=True)
class Ask:
    """A script asks an agent. lib/messages.py checks every field: a model wrote the script."""

    agent: int  # which Agent object of the script: its memory is kept by this number
    name: str
    instructions: str
    tools: tuple[str, ...]
    memory: bool
    max_turns: int  # tool calls before the final reply
    text: str  # what the agent is called with


@dataclass(frozen=True)
class Call:
    """One completion of the executor role: the unit that is trained on."""

    agent: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    messages: tuple[dict, ...] = ()  # the conversation that prompt_ids were rendered from
    tool_output: str | None = None  # what its tool call printed, if it made one
    round: int = 0  # agents that are asked at the same time are in the same round
    turn: int = 0  # an agent that called a tool speaks again: turn 1, 2, ...
    number: int = 0  # which ask of the script it answers: 0, 1, ...
    truncated: bool = False  # cut off

    @property
    def prompt(self) -> str:
        """The text that the agent was called with; after a tool call, the tool's output."""
        return self.messages[-1]["content"] if self.messages else ""


@dataclass(frozen=True)
class Execution:
    """One run of a design."""

    calls: tuple[Call, ...]
    answer: str | None  # the reply that was submitted
    status: str  # one of STATUSES
    detail: str = ""  # why it has this status
    submitted: int | None = None  # index of the call whose reply is the answer
    reward: float = 0.0  # 0 unless status is "answered"

    @property
    def valid(self) -> bool:
        """Whether its reward says anything about the model."""
        return self.status != "infra_error"


@dataclass(frozen=True)
class Tree:
    """One question with its M designs; executions[m][n] is execution n of design m."""

    question: Question
    designs: tuple[Design, ...]
    executions: tuple[tuple[Execution, ...], ...]

    def pairs(self) -> list[tuple[Design, Execution]]:
        """Every execution beside its design."""
        pairs = []
        for design, executions in zip(self.designs, self.executions):
            pairs += [(design, execution) for execution in executions]
        return pairs


@dataclass(frozen=True)
class Sample:
    """One completion to learn from."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantage: float
    role: str  # "designer" or "executor"
    weight: float = 1.0  # of each token, in its role's mean

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def seed_of(*parts) -> int:
    """A seed hashed from whatever names a sample: (run seed, step, question, m, n, call)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
