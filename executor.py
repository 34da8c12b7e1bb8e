"""The executor: runs one design once. It speaks for the design's agents and records every call.

    execution = await Executor(runtime, question, seed).execute(design)

The script runs in the sandbox and talks over a pipe, one JSON message a line:

    script                                           this file
    {"op": "ask", "asks": [{...}, ...]}      ->      samples a reply for each agent, runs its tools
                                             <-      {"replies": [{"id": 0, "text": ...}, ...]}
    {"op": "submit", "reply": 0}             ->      the answer is reply 0

Two rules hold whatever the script does. It can only submit what an agent said: `submit` carries the
number of a reply, never a text (trap 11). Every call is recorded here, as token ids, and not by the
script (trap 2). Failures of the script score 0; those of engine or sandbox are infra_error and left
out (trap 9).

Test: `pytest tests/test_executor.py`. Read next: rollout.py.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Callable

from data_types import Ask, Budget, Call, Completion, Design, Execution, Question, seed_of
from lib.chat import render
from lib.errors import (
    InfrastructureError,
    InvalidScript,
    OverBudget,
    PromptTooLong,
    ProtocolError,
)
from lib.messages import parse_asks
from lib.tools import TOOLS, parse_tool_call, run_tool
from lib.turns import all_of, my_turn
from lib.votes import read_answers
from sandbox import Limits, Outcome, Sandbox

ANSWER_FORMAT = {
    "math": "Put your final answer in \\boxed{}.",
    "rg": "Put your final answer in \\boxed{}.",
    "code": "Put your final program into a ```solution block.",
}

MORE_BLOCKS = []  # source code of a plug-in's blocks (lib/plugins.py)


@dataclass(frozen=True)
class Runtime:
    """What executions share."""

    engine: object  # engines.Engine
    policy: object  # renders conversations
    sandbox: Sandbox
    budget: Budget = Budget()
    temperature: float = 1.0  # 1: what is sampled from is what is scored (trap 1)
    on_call: Callable = lambda calls: None  # told of the calls so far whenever there is news


class Executor:
    """One execution of a design; make a new one for each."""

    def __init__(self, runtime: Runtime, question: Question, seed: tuple):
        self.runtime = runtime
        self.budget = runtime.budget
        self.question = question
        self.seed = seed
        self.calls: dict[tuple[int, int], Call] = {}  # (number of the ask, turn) -> call
        self.replies: list[str] = []  # the final reply to every ask, in the order asked
        self.memories = defaultdict(list)  # agent -> its conversation so far
        self.num_samples = 0
        self.num_tokens = 0
        self.num_rounds = 0

    async def execute(self, design: Design) -> Execution:
        """Run the design. Never raises for what a script does or an agent says."""
        if design.error:
            return self.execution("invalid_script", design.error)
        try:
            submitted, outcome = await self.run_script(design.script)
        except (OverBudget, PromptTooLong) as error:
            return self.execution("budget", str(error))
        except InvalidScript as error:
            return self.execution("invalid_script", str(error))
        except ProtocolError as error:
            return self.execution("crashed", str(error))
        except TimeoutError:  # by waiting for the engine
            return self.execution("infra_error", f"longer than {self.budget.seconds} s")
        except InfrastructureError as error:
            return self.execution("infra_error", str(error))
        if submitted is None:
            return self.execution(*self.why_no_answer(outcome))
        return replace(
            self.execution("answered"),
            answer=self.replies[submitted],
            submitted=sum(number <= submitted for number, _ in self.calls) - 1,  # its last call
        )

    def execution(self, status: str, detail: str = "") -> Execution:
        return Execution(self.calls_in_order(), None, status, detail)

    def calls_in_order(self) -> tuple[Call, ...]:
        """The order asked, which does not depend on who answered first."""
        return tuple(self.calls[key] for key in sorted(self.calls))

    def why_no_answer(self, outcome: Outcome) -> tuple[str, str]:
        """(status, detail) of a script that ended without submitting."""
        if outcome.status == "ok":
            return "no_answer", "the script ended without submit(...)"
        if outcome.status in ("timeout", "cpu"):
            return "timeout", f"the script ran longer than {self.budget.script_seconds} s"
        last_line = (outcome.stderr.strip().splitlines() or [outcome.status])[-1][:300]
        status = "invalid_script" if outcome.status == "invalid" else "crashed"
        return status, last_line

    async def run_script(self, script: str) -> tuple[int | None, Outcome]:
        """Run it in the sandbox. Returns which reply it submitted, if any, and its outcome."""
        seconds = self.budget.script_seconds  # its clock stands still while it waits for replies
        limits = Limits(wall=seconds, cpu=seconds, scratch=0)
        variables = {"question": self.question.prompt}
        script = "\n\n".join([*MORE_BLOCKS, script])
        session = await self.runtime.sandbox.talk(script, variables, limits)
        ended_by_itself = False
        try:
            async with asyncio.timeout(self.budget.seconds):
                submitted = await self.answer_messages(session)
            ended_by_itself = submitted is None
        finally:
            if not ended_by_itself:
                session.kill()
            outcome = await session.finish()
        return submitted, outcome

    async def answer_messages(self, session) -> int | None:
        """Answer the script until it submits a reply, whose number is returned, or ends (None)."""
        while (message := await session.receive()) is not None:
            if message.get("op") == "submit":
                return self.check_submit(message.get("reply"))
            await session.send({"replies": await self.answer_asks(message)})
        return None

    def check_submit(self, reply) -> int:
        if type(reply) is not int or not 0 <= reply < len(self.replies):
            raise ProtocolError("submit names no reply of this execution")
        return reply

    async def answer_asks(self, message: dict) -> list[dict]:
        """Speak for the agents that the script asks, all at the same time."""
        asks = parse_asks(message)
        for ask in asks:
            unknown = sorted(set(ask.tools) - set(self.question.tools))
            if unknown:
                raise InvalidScript(f"this question offers no tool {', '.join(unknown)}")

        self.num_rounds += 1
        first = len(self.replies)
        agents = [self.run_agent(ask, first + i) for i, ask in enumerate(asks)]
        texts = await all_of(agents)
        self.replies += texts
        for ask, text in zip(asks, texts):  # in the order asked, whoever ended first
            if ask.memory:
                said = {"role": "assistant", "content": text}
                self.memories[ask.agent] += [{"role": "user", "content": ask.text}, said]

        answers, groups = await read_answers(self.runtime.sandbox, self.question, texts)
        replies = []
        for i, (text, answer, group) in enumerate(zip(texts, answers, groups)):
            replies.append({"id": first + i, "text": text, "answer": answer, "group": group})
        return replies

    async def run_agent(self, ask: Ask, number: int) -> str:
        """Let one agent speak: tool calls, at most max_turns, then its final reply."""
        history = self.memories[ask.agent] if ask.memory else []
        messages = agent_messages(ask, history, self.question.kind)
        max_tool_calls = ask.max_turns if ask.tools else 0
        round = self.num_rounds

        for turn in range(max_tool_calls + 1):
            prompt_ids, completion = await self.sample(messages, seed=(number, turn))
            call = Call(
                agent=ask.name,
                prompt_ids=prompt_ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                text=completion.text,
                truncated=completion.truncated,
                messages=tuple(messages),
                round=round,
                turn=turn,
                number=number,
            )
            self.record(call)

            await my_turn()  # many replies may arrive at once
            tool_call = parse_tool_call(completion.text, ask.tools)
            if tool_call is None or turn == max_tool_calls:
                break
            sandbox, seconds = self.runtime.sandbox, self.budget.tool_seconds
            output = await run_tool(*tool_call, self.question, sandbox, seconds)
            self.record(replace(call, tool_output=output))
            is_last = turn == max_tool_calls - 1
            messages = messages + tool_messages(completion.text, output, is_last)

        return completion.text

    def record(self, call: Call) -> None:
        self.calls[call.number, call.turn] = call
        self.runtime.on_call(self.calls_in_order())

    async def sample(self, messages: list[dict], seed: tuple) -> tuple[tuple, Completion]:
        """The prompt, and one completion of it within the budget."""
        if self.num_samples >= self.budget.calls:
            raise OverBudget(f"more than {self.budget.calls} calls")
        if self.num_tokens >= self.budget.tokens:
            raise OverBudget(f"more than {self.budget.tokens} tokens")
        self.num_samples += 1
        max_tokens = min(self.budget.reply_tokens, self.budget.tokens - self.num_tokens)
        prompt_ids = await render(self.runtime.policy, messages)
        completion = await self.runtime.engine.sample(
            prompt_ids,
            max_tokens=max_tokens,
            seed=seed_of(*self.seed, *seed),
            temperature=self.runtime.temperature,
        )
        self.num_tokens += len(completion.ids)
        return prompt_ids, completion


def agent_messages(ask: Ask, history: list[dict], kind: str = "math") -> list[dict]:
    """The conversation shown to an agent: its instructions, its memory, what it is called with.

    The question is in ask.text, if the script passed it on.
    """
    lines = [ask.instructions, ANSWER_FORMAT[kind]]
    lines += [tool.help for name, tool in TOOLS.items() if name in ask.tools]
    if ask.tools:
        lines.append("When you know the answer, reply without such a block.")
    system = {"role": "system", "content": "\n".join(lines)}
    return [system, *history, {"role": "user", "content": ask.text}]


def tool_messages(reply: str, output: str, is_last: bool) -> list[dict]:
    """What a tool call adds to the conversation. After the last one the agent has to answer."""
    content = f"Output: {output}"
    if is_last:
        content += "\nNo more code: give your final answer."
    return [{"role": "assistant", "content": reply}, {"role": "user", "content": content}]
