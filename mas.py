"""The building blocks of a designed multi-agent system (MAS).

A design is a short Python script. It runs inside the sandbox, with `question` and the names below
in scope, so it needs no import:

    solver = Agent("solver", "Solve the problem step by step.", tools=["python"])
    critic = Agent("critic", "Look for a mistake. Reply APPROVED if there is none.")
    submit(reflect(solver, critic, question, rounds=2))

Every block is an ordinary function over agents. The docstrings here are also the documentation that
the designer is shown (designer.block_reference), so what it reads and what runs can't drift apart.

This file runs inside the sandbox: standard library only. It knows no model. `_request` sends one
message to the trainer and returns the answer. There, executor.py speaks for the agents, records
what they say, and keeps two rules: a script can only submit what an agent said, and it sees nothing
but the question and the replies, with their answers.

Test: `pytest tests/test_mas.py`. Read next: designer.py.
"""

import itertools
import re
from collections import Counter

__all__ = ["Agent", "Reply", "ask_all", "vote", "judge", "reflect", "debate", "route", "submit"]


def _request(message: dict) -> dict:
    """Send `message` to the trainer and wait for its answer. The sandbox puts the real one here."""
    raise RuntimeError("a design runs only inside the sandbox")


class Reply(str):
    """What an agent said: a string with `.agent`, its name, and `.answer`.

    The answer is its last box, or its last program; None if there is none.
    """

    def __new__(cls, text, id=-1, answer=None, agent="", group=None):
        reply = super().__new__(cls, text)
        reply.id = id
        reply.answer = answer
        reply.agent = agent
        reply.group = group or answer  # replies of one group count as one answer in a vote
        return reply


_agent_numbers = itertools.count()  # an agent's memory is kept by this number


class Agent:
    """Agent(name, instructions, tools=(), memory=False, max_turns=2): one agent.

    Call it with a text to get a Reply. tools=["python"] lets it run Python and read the output, up
    to max_turns times before its final reply. With memory=True it remembers its conversation;
    otherwise each call starts afresh.
    """

    def __init__(self, name, instructions, tools=(), memory=False, max_turns=2):
        self.name = str(name)
        self.instructions = str(instructions)
        self.tools = [str(tool) for tool in tools]
        self.memory = bool(memory)
        self.max_turns = int(max_turns)
        self._number = next(_agent_numbers)

    def __call__(self, text):
        return ask_all([self], text)[0]

    def __repr__(self):
        return f"Agent({self.name!r})"


def ask_all(agents, text):
    """ask_all(agents, text) -> [Reply]: ask several agents at the same time.

    text is one string for all, or a list with one for each.
    """
    agents = list(agents)
    texts = list(text) if isinstance(text, (list, tuple)) else [text] * len(agents)
    if not agents or len(texts) != len(agents):
        raise ValueError(
            f"{len(agents)} agents and {len(texts)} texts: need one text for all, or one each"
        )
    asks = []
    for agent, agent_text in zip(agents, texts):
        asks.append(
            {
                "agent": agent._number,
                "name": agent.name,
                "instructions": agent.instructions,
                "tools": agent.tools,
                "memory": agent.memory,
                "max_turns": agent.max_turns,
                "text": str(agent_text),
            }
        )
    replies = []
    for agent, reply in zip(agents, _request({"op": "ask", "asks": asks})["replies"]):
        group = reply.get("group")
        replies.append(Reply(reply["text"], reply["id"], reply["answer"], agent.name, group))
    return replies


def submit(reply):
    """submit(reply): hand in a Reply as the system's answer, and end.

    Only what an agent said can be handed in.
    """
    if not isinstance(reply, Reply):
        raise TypeError(f"submit takes a Reply of an agent, not {type(reply).__name__}")
    _request({"op": "submit", "reply": reply.id})
    raise SystemExit(0)


def vote(agents, text, judge=None):
    """vote(agents, text, judge=None) -> Reply: ask all the same; the most common answer wins.

    On a tie the judge, if there is one, decides.
    """
    return _majority(ask_all(agents, text), text, judge)


def judge(agent, text, replies):
    """judge(agent, text, replies) -> Reply: the agent reads all replies and gives the answer."""
    return agent(text + "\n\n" + _listed(replies))


def reflect(solver, critic, text, rounds=1):
    """reflect(solver, critic, text, rounds=1) -> Reply: solve, let the critic review, revise.

    It ends when the critic says APPROVED, or after so many rounds.
    """
    reply = solver(text)
    for _ in range(rounds):
        review = critic(f"{text}\n\nAttempt: {reply}")
        if _approved(review):
            break
        reply = solver(f"{text}\n\nAttempt: {reply}\nReview: {review}")
    return reply


def debate(agents, text, rounds=1, judge=None):
    """debate(agents, text, rounds=1, judge=None) -> Reply: all answer, then vote.

    In each round they first read each other's replies and answer again.
    """
    replies = ask_all(agents, text)
    for _ in range(rounds):
        replies = ask_all(agents, text + "\n\n" + _listed(replies))
    return _majority(replies, text, judge)


def route(router, agents, text):
    """route(router, agents, text) -> Reply: the router names one of the agents, which answers.

    If it names none, the first one does.
    """
    agents = list(agents)
    choice = router(text + "\n\nAgents: " + ", ".join(agent.name for agent in agents))
    for agent in sorted(agents, key=lambda agent: -len(agent.name)):  # c++ before c
        if re.search(rf"(?<!\w){re.escape(agent.name)}(?!\w)", choice, re.IGNORECASE):
            return agent(text)
    return agents[0](text)


def _listed(replies):
    return "\n".join(f"Reply {number}: {reply}" for number, reply in enumerate(replies, 1))


def _majority(replies, text, judge_agent):
    counts = Counter(reply.group for reply in replies if reply.group is not None)
    most = max(counts.values(), default=0)
    leaders = [group for group, count in counts.items() if count == most]
    if len(leaders) != 1 and judge_agent is not None:
        return judge(judge_agent, text, replies)
    for reply in replies:
        if reply.group in leaders:
            return reply
    return replies[0]  # nobody gave an answer


def _approved(review):
    # A whole last line, not a substring: "INCORRECT" must not count as "CORRECT", nor
    # "NOT APPROVED" as "APPROVED" (trap 5).
    lines = [line.strip(" .!*`\"'\t") for line in review.splitlines() if line.strip()]
    return review.answer == "APPROVED" or (bool(lines) and lines[-1].upper() == "APPROVED")
