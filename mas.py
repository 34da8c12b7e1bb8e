"""The building blocks that a designed multi-agent system (MAS) is made of.

A design is a short Python script. It runs inside the sandbox with `question` and the names below in scope, so it
needs no import:

    solver = Agent("solver", "Solve the problem step by step.", tools=["python"])
    critic = Agent("critic", "Look for a mistake. Reply APPROVED if there is none.")
    submit(reflect(solver, critic, question, rounds=2))

Every block is an ordinary function over agents, and every docstring here is also shown to the designer
(`designer.reference()`), so that what it is told and what runs can't drift apart.

This file runs inside the sandbox: standard library only. It knows no model. `_request` sends one message to the parent
and returns its answer; the parent (executor.py) speaks for the agents, records what they said, and keeps the two
rules: a script can only submit something that an agent said, and it sees nothing but the question.
Test: `pytest tests/test_mas.py`. Read next: sandbox.py.
"""
import itertools
import re
from collections import Counter

__all__ = ["Agent", "Reply", "ask_all", "vote", "judge", "reflect", "debate", "route", "submit"]


def _request(message: dict) -> dict:
    """Send `message` to the parent and wait for its answer. The sandbox puts the real one in place."""
    raise RuntimeError("a design runs only inside the sandbox")


class Reply(str):
    """What an agent said: a string, with `.answer` (what it boxed, or its solution block; None if neither) and `.agent`."""

    def __new__(cls, text, id=-1, answer=None, agent="", group=None):
        reply = super().__new__(cls, text)
        reply.id, reply.answer, reply.agent, reply.group = id, answer, agent, group or answer
        return reply


_keys = itertools.count()  # which agent asks: its memory is kept by this number


class Agent:
    """Agent(name, instructions, tools=(), memory=False, max_turns=2): one agent; call it with a text, get a Reply.

    tools=["python"] lets it run Python and read the output, up to max_turns times before its final reply.
    With memory=True it remembers its earlier conversation; otherwise each call starts afresh.
    """

    def __init__(self, name, instructions, tools=(), memory=False, max_turns=2):
        self.name, self.instructions, self.tools = str(name), str(instructions), [str(tool) for tool in tools]
        self.memory, self.max_turns, self._key = bool(memory), int(max_turns), next(_keys)

    def __call__(self, text):
        return ask_all([self], text)[0]

    def __repr__(self):
        return f"Agent({self.name!r})"


def ask_all(agents, text):
    """ask_all(agents, text) -> [Reply]: ask several agents at the same time. text is one string for all, or a list of one each."""
    agents = list(agents)
    texts = list(text) if isinstance(text, (list, tuple)) else [text] * len(agents)
    if not agents or len(texts) != len(agents):
        raise ValueError(f"{len(agents)} agents and {len(texts)} texts: need one text for all, or one each")
    asks = [{"agent": agent._key, "name": agent.name, "instructions": agent.instructions, "tools": agent.tools,
             "memory": agent.memory, "max_turns": agent.max_turns, "text": str(text)} for agent, text in zip(agents, texts)]
    replies = _request({"op": "ask", "asks": asks})["replies"]
    return [Reply(reply["text"], reply["id"], reply["answer"], agent.name, reply.get("group")) for reply, agent in zip(replies, agents)]


def submit(reply):
    """submit(reply): hand in a Reply as the system's answer, and end. Only what an agent said can be handed in."""
    if not isinstance(reply, Reply):
        raise TypeError(f"submit takes a Reply, something that an agent said, not {type(reply).__name__}")
    _request({"op": "submit", "reply": reply.id})
    raise SystemExit(0)


def vote(agents, text, judge=None):
    """vote(agents, text, judge=None) -> Reply: ask all the same; the most common answer wins; on a tie the judge, if any, decides."""
    return _majority(ask_all(agents, text), text, judge)


def judge(agent, text, replies):
    """judge(agent, text, replies) -> Reply: the agent reads the question and all replies, and gives the final answer."""
    return agent(text + "\n\n" + _listed(replies))


def reflect(solver, critic, text, rounds=1):
    """reflect(solver, critic, text, rounds=1) -> Reply: solve; the critic reviews; revise, until it says APPROVED or rounds are over."""
    reply = solver(text)
    for _ in range(rounds):
        review = critic(f"{text}\n\nAttempt: {reply}")
        if _approved(review):
            break
        reply = solver(f"{text}\n\nAttempt: {reply}\nReview: {review}")
    return reply


def debate(agents, text, rounds=1, judge=None):
    """debate(agents, text, rounds=1, judge=None) -> Reply: all answer, then read each other and answer again; then vote."""
    replies = ask_all(agents, text)
    for _ in range(rounds):
        replies = ask_all(agents, text + "\n\n" + _listed(replies))
    return _majority(replies, text, judge)


def route(router, agents, text):
    """route(router, agents, text) -> Reply: the router names one of the agents, and that one answers."""
    choice = router(text + "\n\nAgents: " + ", ".join(agent.name for agent in agents))
    named = [agent for agent in dict.fromkeys(agents) if re.search(rf"\b{re.escape(agent.name)}\b", choice, re.IGNORECASE)]
    return (named or list(agents))[0](text)


def _listed(replies):
    return "\n".join(f"Reply {number}: {reply}" for number, reply in enumerate(replies, 1))


def _majority(replies, text, judge_agent):
    counts = Counter(reply.group for reply in replies if reply.group is not None)  # programs that do the same are one answer
    if not counts:
        return replies[0] if judge_agent is None else judge(judge_agent, text, replies)
    most = max(counts.values())
    leaders = {reply.group: reply for reply in reversed(replies) if counts[reply.group] == most}  # earliest reply of each
    if len(leaders) > 1 and judge_agent is not None:
        return judge(judge_agent, text, replies)
    return next(reply for reply in replies if reply.group in leaders)


def _approved(review):
    # A whole last line, not a substring: "INCORRECT" must not count as "CORRECT", nor "NOT APPROVED" as "APPROVED".
    lines = [line.strip(" .!*`\"'\t") for line in review.splitlines() if line.strip()]
    return review.answer == "APPROVED" or bool(lines) and lines[-1].upper() == "APPROVED"
