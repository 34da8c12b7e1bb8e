"""The executor: runs one design. It speaks for the design's agents, runs their tools, and records every call.

The script is in the sandbox and talks over a pipe: {"op": "ask", "asks": [...]} and {"op": "submit", "reply": id}. (One that does
nothing but call blocks says the same without a process: plain.py.) All that is trained on is recorded here, in the parent, as token
ids. (Trap avoided: calls written by the untrusted script to a file, which after a crash was an older question's.) Two rules
hold by construction:
- A script can only submit something that an agent said: `submit` carries the id of a reply, never a text.
- A script sees only the question: nothing else is sent to it, and the sandbox shows it nothing.

Every end is a typed status. Script failures score 0; infrastructure failures are left out and counted.
Test: `pytest tests/test_executor.py`. Read next: rollout.py.
"""
import asyncio
import hashlib
import re
from dataclasses import dataclass, replace

import plain
from designer import Design
from policy import EngineError, PromptTooLong, seed_of
from programs import judge, last_program
from sandbox import Limits, ProtocolError, SandboxError
from tasks import Question, final_answer

KEPT_RUNS = 1024  # of tools, to be looked up instead of run again
STATUSES = ("answered", "no_answer", "invalid_script", "crashed", "budget", "timeout", "infrastructure")


@dataclass(frozen=True)
class Budget:
    """What one execution may use, over all its agents together."""
    calls: int = 16  # completions
    tokens: int = 16384  # sampled
    reply_tokens: int = 1024  # of one reply
    seconds: float = 600.0  # from start to end, waiting included
    script_seconds: float = 5.0  # the script's own running time
    tool_seconds: float = 5.0  # of one tool run


@dataclass(frozen=True)
class Call:
    """One completion of the executor role: the unit that is trained on."""
    agent: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    messages: tuple[dict, ...] = ()  # what the prompt was rendered from
    tool_output: str | None = None  # what its Python printed, if this turn ran some
    round: int = 0  # agents that are asked at the same time are of one round
    turn: int = 0  # of this agent in this round: after a tool run it speaks again

    @property
    def prompt(self) -> str:
        """The text that the agent was called with; after a tool run, the tool's output."""
        return self.messages[-1]["content"] if self.messages else ""


@dataclass(frozen=True)
class Execution:
    """One run of a design: what was said, what was submitted, how it ended (one of STATUSES), and why."""
    calls: tuple[Call, ...]
    answer: str | None
    status: str
    detail: str = ""
    submitted: int | None = None  # which call was the answer


class OverBudget(Exception):
    """An execution asked for more than its budget."""


class InvalidScript(Exception):
    """A script asked for something that does not exist (a tool that the question does not offer)."""


TOOLS = {
    "python": "You can run Python: reply with a ```python block and nothing after it, and you get to see what it prints.",
    "tests": "You can test a program on the question's examples: reply with it in a ```tests block and nothing after it, and you get to see what passes.",
}
FORMATS = {"code": "Put your final program into a ```solution block."}
FORMAT, NO_BLOCK = "Put your final answer in \\boxed{}.", "When you know the answer, reply without such a block."


def agent_messages(instructions: str, tools, text: str, history=(), kind: str = "math") -> list[dict]:
    """What an agent is shown. The first line is its instructions; the question is in `text`, if the script passed it on."""
    system = "\n".join([instructions, FORMATS.get(kind, FORMAT), *(TOOLS[tool] for tool in TOOLS if tool in tools)] + [NO_BLOCK] * bool(tools))
    return [{"role": "system", "content": system}, *history, {"role": "user", "content": text}]


def tool_messages(reply: str, output: str, last: bool) -> list[dict]:
    """What is added after a tool run; after the last one that is allowed, the agent is told to answer."""
    note = "\nNo more code: give your final answer." if last else ""
    return [{"role": "assistant", "content": reply}, {"role": "user", "content": f"Output: {output}{note}"}]


def tool_call(text: str, tools) -> tuple[str, str] | None:
    """The tool that a reply calls, and the code: its last fenced block that names one of `tools`; None if it has a final program, or no such block.

    >>> tool_call("```python\\nprint(6 * 7)\\n```", ["python"])
    ('python', 'print(6 * 7)')
    """
    blocks = re.findall(r"```(python|py|tests|solution)[ \t]*\n(.*?)```", text, re.DOTALL)
    calls = [("python" if name == "py" else name, code.strip()) for name, code in blocks]
    return None if any(name == "solution" for name, _ in calls) else next((call for call in reversed(calls) if call[0] in tools), None)


class Executor:
    """Runs designs with one engine and one sandbox."""

    def __init__(self, engine, policy, sandbox, budget: Budget = Budget(), temperature: float = 1.0, watch=lambda calls: None):
        """watch: is told of an execution's calls so far whenever there is a new one, or a tool has run."""
        self.engine, self.policy, self.sandbox, self.budget, self.temperature, self.watch = engine, policy, sandbox, budget, temperature, watch
        self.tool_runs = {}  # code -> task

    async def execute(self, design: Design, question: Question, seed: tuple) -> Execution:
        """Run `design` once. Never raises for what a script or a model does."""
        if design.error:
            return Execution((), None, "invalid_script", design.error)
        return await _Run(self, question, seed).run(design.script)

    async def run_tool(self, code: str) -> str:
        """What an agent sees of a snippet's run. The same snippet runs once (agents of a vote, executions of a design often agree): every run starts from the
        same state, so but for clocks and the system's random numbers it would end the same. What may be the machine's fault (a timeout, a
        crash) is shared by those who wait at that moment, and not kept. Raises SandboxError."""
        if code not in self.tool_runs:
            if len(self.tool_runs) >= KEPT_RUNS:
                del self.tool_runs[next(iter(self.tool_runs))]
            self.tool_runs[code] = asyncio.ensure_future(self._run_tool(code))
            self.tool_runs[code].add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits for it any more
        return await asyncio.shield(self.tool_runs[code])  # whoever gives up waiting does not end it for the others

    async def _run_tool(self, code):
        limits, keep = Limits(wall=self.budget.tool_seconds, cpu=self.budget.tool_seconds), False
        try:
            outcome = await self.sandbox.run(code, limits=limits)
            keep = outcome.status not in ("timeout", "crash", "killed")
        finally:
            if not keep and self.tool_runs.get(code) is asyncio.current_task():
                del self.tool_runs[code]
        problem = "" if outcome.status == "ok" else outcome.stderr.strip().splitlines()[-1:] or [outcome.status]
        return (outcome.stdout.strip() + ("\n" if outcome.stdout.strip() and problem else "") + "".join(problem))[:2000]

    async def same_group(self, question: Question, text: str) -> str | None:
        """Programs that do the same on the public tests are one answer to a vote: a digest of what this one does. Raises SandboxError."""
        program = last_program(text)
        if program is None:
            return None
        verdicts = await judge(self.sandbox, question.tests, question.tests.public, program)
        return hashlib.sha256(repr([verdict.said for verdict in verdicts] or program).encode("utf-8", "replace")).hexdigest()


class _Run:
    """The state of one execution."""

    def __init__(self, executor, question, seed):
        self.executor, self.budget, self.question, self.seed = executor, executor.budget, question, seed
        self.calls = {}  # (ask, turn) -> Call
        self.replies, self.memories, self.answered = [], {}, None
        self.asked = self.started = self.tokens = self.rounds = 0

    async def run(self, script: str) -> Execution:
        answer = status = None
        detail = ""
        try:
            session = plain.session(script, self.question.prompt) or await self.executor.sandbox.talk(
                script, {"question": self.question.prompt}, Limits(wall=self.budget.script_seconds, cpu=self.budget.script_seconds, scratch=0))
            running = True
            try:
                async with asyncio.timeout(self.budget.seconds):
                    answer = await self.converse(session)
                running = answer is not None
            finally:
                if running:  # whatever it is still doing: its answer is in, or it has none
                    session.kill()
                outcome = await session.finish()
            status, detail = ("answered", "") if answer is not None else self.ended(outcome)
        except OverBudget as error:
            status, detail = "budget", str(error)
        except InvalidScript as error:
            status, detail = "invalid_script", str(error)
        except ProtocolError as error:
            status, detail = "crashed", str(error)
        except TimeoutError:
            status, detail = "timeout", f"longer than {self.budget.seconds} s"
        except (SandboxError, EngineError) as error:
            status, detail = "infrastructure", str(error)
        submitted = None if answer is None else max(place for place, (ask, _) in enumerate(sorted(self.calls)) if ask == self.answered)
        return Execution(self.listing(), answer, status, detail, submitted)

    def listing(self) -> tuple[Call, ...]:
        """The calls so far, in the order asked."""
        return tuple(self.calls[key] for key in sorted(self.calls))

    def record(self, key, call: Call) -> Call:
        self.calls[key] = call
        self.executor.watch(self.listing())
        return call

    async def converse(self, session) -> str | None:
        """Answer the script's messages until it submits (the text of that reply) or ends (None)."""
        while (message := await session.receive()) is not None:
            if message.get("op") == "submit":
                return self.submitted(message)
            await session.send({"replies": await self.ask(message)})
        return None

    def ended(self, outcome):
        """The status of a script that ended without an answer."""
        last_line = (outcome.stderr.strip().splitlines() or [outcome.status])[-1][:300]
        if outcome.status == "ok":
            return "no_answer", "the script ended without submit(...)"
        if outcome.status in ("timeout", "cpu"):
            return "timeout", f"the script ran longer than {self.budget.script_seconds} s"
        return ("invalid_script" if outcome.status == "invalid" else "crashed"), last_line

    def submitted(self, message) -> str:
        reply = message.get("reply")
        if type(reply) is not int or not 0 <= reply < len(self.replies):
            raise ProtocolError("submit names no reply of this execution")
        self.answered = reply  # replies are numbered like the asks
        return self.replies[reply]

    async def ask(self, message) -> list[dict]:
        """Speak for the agents that the script asks, all at the same time."""
        asks = message.get("asks")
        if message.get("op") != "ask" or not isinstance(asks, list) or not 0 < len(asks) <= 64:
            raise ProtocolError("a message is an ask or a submit")
        for ask in asks:
            check_ask(ask)
            if missing := set(ask["tools"]) - set(self.question.tools):
                raise InvalidScript(f"this question offers no tool {', '.join(sorted(missing))}")
        first, self.rounds = self.asked, self.rounds + 1
        self.asked += len(asks)
        texts = await self.executor.engine.gather(*(self.agent(ask, first + number) for number, ask in enumerate(asks)))
        self.replies += texts  # in the order asked, not the order answered: the same in every run
        ids = range(len(self.replies) - len(texts), len(self.replies))
        if self.question.kind != "code":
            return [{"id": id, "text": text, "answer": final_answer(text)} for id, text in zip(ids, texts)]
        groups = await asyncio.gather(*(self.executor.same_group(self.question, text) for text in texts)) if len(texts) > 1 else [None]
        return [{"id": id, "text": text, "answer": last_program(text), "group": group} for id, text, group in zip(ids, texts, groups)]

    async def agent(self, ask, number: int) -> str:
        """One agent's turns: up to max_turns tool runs, then a final reply, which is returned. Every turn is recorded."""
        history = self.memories.setdefault(ask["agent"], []) if ask["memory"] else []
        messages = agent_messages(ask["instructions"], ask["tools"], ask["text"], history, self.question.kind)
        runs, round = ask["max_turns"] if ask["tools"] else 0, self.rounds
        for turn in range(runs + 1):
            prompt_ids, completion = await self.sample(messages, (number, turn))
            call = self.record((number, turn), Call(ask["name"], prompt_ids, completion.ids, completion.logprobs, completion.text, tuple(messages), None, round, turn))
            wanted = tool_call(completion.text, ask["tools"]) if turn < runs else None
            if wanted is None:
                break
            output = await getattr(self, wanted[0])(wanted[1])
            self.record((number, turn), replace(call, tool_output=output))
            messages = messages + tool_messages(completion.text, output, last=turn == runs - 1)
        if ask["memory"]:
            history += [{"role": "user", "content": ask["text"]}, {"role": "assistant", "content": completion.text}]
        return completion.text

    async def sample(self, messages, call):
        if self.started >= self.budget.calls:
            raise OverBudget(f"more than {self.budget.calls} calls")
        if self.tokens >= self.budget.tokens:
            raise OverBudget(f"more than {self.budget.tokens} tokens")
        self.started += 1
        prompt_ids = self.executor.policy.render(messages)
        tokens = min(self.budget.reply_tokens, self.budget.tokens - self.tokens)
        try:
            completion = await self.executor.engine.sample(prompt_ids, tokens, seed_of(*self.seed, *call), self.executor.temperature)
        except PromptTooLong as error:
            raise OverBudget(str(error)) from None
        self.tokens += len(completion.ids)
        return prompt_ids, completion

    async def python(self, code: str) -> str:
        return await self.executor.run_tool(code)

    async def tests(self, program: str) -> str:
        """The program's verdicts on the public tests, and the first failure. Hidden tests are not run before the end."""
        tests = self.question.tests
        verdicts = await judge(self.executor.sandbox, tests, tests.public, program)
        text = f"{sum(verdict.passed for verdict in verdicts)} of {len(verdicts)} passed."
        for case, verdict in zip(tests.public, verdicts):
            if not verdict.passed:
                shown = f"Failed: {case}" if tests.kind == "assert" else f"Input:\n{case[0]}\nExpected:\n{case[1]}"
                return f"{text}\n{shown}\nGot:\n{verdict.said}"[:2000]
        return text


def check_ask(ask) -> None:
    """Check one ask of an untrusted script, field by field. Raises ProtocolError."""
    types = {"agent": int, "name": str, "instructions": str, "tools": list, "memory": bool, "max_turns": int, "text": str}
    if not isinstance(ask, dict) or set(ask) != set(types) or any(type(ask[key]) is not kind for key, kind in types.items()):
        raise ProtocolError("an ask has the wrong fields")
    if not all(isinstance(tool, str) for tool in ask["tools"]) or len(ask["tools"]) > 8:
        raise ProtocolError("tools are a few names")
    if not 0 <= ask["max_turns"] <= 16:
        raise ProtocolError("max_turns is 0 to 16")
    try:
        "".join((ask["text"], ask["instructions"], ask["name"], *ask["tools"])).encode()
    except UnicodeEncodeError:
        raise ProtocolError("text that is not Unicode") from None
