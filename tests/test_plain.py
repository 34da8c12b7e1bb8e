"""Plain scripts: which are, and that they end as they would in the sandbox."""
import asyncio

import pytest
from conftest import QUESTION, SHARED, Scripted, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

import plain
from designer import FIXED, Design
from executor import Budget, Executor
from sandbox import Sandbox

A, B = 'a = Agent("a", "Solve it.")\n', 'b = Agent("b", "Check it.", memory=True)\n'
PLAIN = [
    *FIXED.values(),
    A + "submit(a(question))",
    A + "a(question)",  # ends without an answer
    A + "submit(a(question))\nsubmit(a(question))",
    A + B + "submit(debate([a, b], question, rounds=2, judge=a))",
    A + B + "submit(route(a, [a, b], question))",
    A + B + "replies = ask_all([a, b] * 2, question)\nsubmit(judge(b, question, replies))",
    A + B + "b(question)\nb(question)\nsubmit(b(question))",  # remembers
    A + 'submit(ask_all([a, a], ["one", question]))',  # a list is no reply
    A + "submit(question)", A + 'submit("42")', "submit(None)",  # only what an agent said
    A + "submit(vote([], question))", A + "submit(vote([a] * 0, question))", A + "ask_all([a] * 64, question)\nask_all([a] * 64, question)",
    A + "submit(a())", A + "submit(a(question, 2))", A + "submit(nosuch=a)", "submit()", 'submit(Agent("a"))', "question(question)",
    A + "submit(reflect(a, a, question, rounds=1000000000000))", A + 'submit(reflect(a, a, question, rounds="3"))',
    A + "submit(vote([question], question))", A + "submit(a([a]))", A + "submit(a(a))", A + "submit(a([question, question]))",
    A + "x = [1]\nx = a\nsubmit(vote([x], question))",
    'submit(Agent("a", "i", tools=["browser"])(question))', 'submit(Agent("a", "i", max_turns=99)(question))', 'Agent("a", "i", max_turns=1e999)',
    'submit(Agent("a", "i", max_turns="many")(question))', 'submit(Agent("a", "i", tools="python")(question))',
    A + 'submit(a("\\ud800"))', A + "a = a(question)\nsubmit(a)", A + "a(question)\na(question)\na(question)\n",
    'submit(Agent("a", "i", max_turns=0x' + "f" * 1400 + ")(question))", 'Agent("a", "i", max_turns="' + "9" * 1400 + '")', "Agent(__x=3)", f"question({'k' * 1400}=1)",
    A + 'submit(a("\\("))',
    '"""A note."""\nsubmit(Agent("a", "")("?"))  # and another',
]
NOT_PLAIN = [
    "", "# a note", "import os", "print(question)", "open(question)", "submit(nobody(question))", "__import__('os')", "__builtins__", "exec(question)",
    A + "submit(a(question).answer)", A + "submit(ask_all([a], question)[0])", A + "for x in question: a(x)", A + "while True: a(question)",
    A + "if a(question): submit(a(question))", A + 'submit(a(f"{question}"))', A + "submit(a(question + question))", A + "submit(a('word ' * 9))",
    "def f(): return 1", "submit(lambda: 1)", "[a for a in question]", A + "submit((b := a)(question))", A + "submit(*[a])", A + "submit(**{})", A + "a: int = 3",
    A + "a += 3", A + "a, b = a, a", "x = y = 3", "x.y = 3", "x[0] = 3", "vote = 3", "__debug__ = 3", "Agent(__debug__=3)", 'Agent(name="a", name="b")', "x = x", "x = 2\ndel x",
    "x = b'bytes'", "x = ...", "x = 3j", "x = -3", "x = {}", "x = (1, 2)", "x = [1] * 65", "x = [1] * -1", "x = 3 * [1]", "x = [1] * [1]", "x = vote", "submit(submit)", "[vote]",
    "submit(a(question)", "Let me think.", "\0", "(" * 500, "await question", "yield", "return", "async def f(): pass", "assert question", "Reply('42')",
    # what could pile up: lists in lists, and texts made of lists
    "x = [[1] * 64] * 64", "x = [1] * 64\ny = [x] * 64", "x = [1] * 64\ny = x\nz = [y]", A + "x = [ask_all([a] * 64, question)] * 64", A + 'b = Agent([a] * 64, "")', A + "b = Agent(a, a)",
    'Agent([Agent("a", "")], "")', 'Agent(question, "")', "x = 1\nx = [1]\ny = [x]",
]


@pytest.mark.parametrize("script", PLAIN)
def test_plain(script):
    assert plain.read(script)


@pytest.mark.parametrize("script", NOT_PLAIN)
def test_not_plain(script):
    assert plain.session(script, "question") is None


@pytest.mark.parametrize("start, more, end", [("", "-", "1"), ("a", ".b", ""), ("question", "()", ""), ("", "(", ""), ("", "1+", "1"), ("", "not ", "1"), ("", "x=", "1"), ("", "9", "")])
def test_no_depth_breaks_the_parser(start, more, end):
    assert plain.read(start + more * 100_000 + end) is None


def test_what_a_script_is_warned_of_is_not_said_here(recwarn):
    assert plain.read(A + 'submit(a("\\("))') and not plain.read("submit(1if 1else 2)") and not recwarn.list


@needs_shared
def test_no_attack_is_plain():
    attacks = list((SHARED / "attacks").rglob("*.py"))
    assert len(attacks) > 20 and not any(plain.read(path.read_text(errors="replace")) for path in attacks)


SAY = {"Solve it.": r"I think \boxed{42}", "Check it.": "APPROVED", "i": "```python\nprint(6 * 7)\n```"}


def speak(prompt):
    """Depends on all of the prompt, so that two conversations which differ anywhere show it."""
    return next((reply for text, reply in SAY.items() if text in prompt), "hm") + f" {len(prompt)}"


def run(policy, scripts, both=True, budget=Budget(calls=130, reply_tokens=48), speak=speak):
    """[(execution of a script, execution of the same in the sandbox)]"""
    async def go():
        async with Sandbox() as sandbox:
            executor = Executor(Scripted(policy, speak), policy, sandbox, budget)
            return [await executor.execute(Design(script), QUESTION, ("test",)) for script in scripts]

    here = asyncio.run(go())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "session", lambda script, question: None)
        return list(zip(here, asyncio.run(go()) if both else here))


def test_both_ways_end_the_same(policy):
    statuses = set()
    for script, (here, there) in zip(PLAIN, run(policy, PLAIN)):
        assert here == there, script
        statuses.add(here.status)
    assert statuses == {"answered", "no_answer", "crashed", "budget", "invalid_script"}


def test_limits_of_a_message_and_their_number(policy):
    """A debate of 64 is a message of several megabytes; and a thousand messages are the most."""
    long = 'a = Agent("a", "Solve it.")\nsubmit(debate([a] * 64, question))'
    (here, there), = run(policy, [long], speak=lambda prompt: "word " * 5000, budget=Budget(calls=999, tokens=10**9, reply_tokens=10**6))
    assert here.status == there.status == "crashed" and "bytes" in here.detail and len(here.calls) == len(there.calls) == 64
    many = A + "submit(reflect(a, a, question, rounds=9999))"
    (here, there), = run(policy, [many], speak=lambda prompt: "no", budget=Budget(calls=9999))
    assert here == there and here.status == "crashed" and here.detail == "more than 1000 messages"


def test_no_process(policy, monkeypatch):
    async def talk(*_):
        raise AssertionError("a process for a plain script")
    monkeypatch.setattr(Sandbox, "talk", talk)
    assert {here.status for here, _ in run(policy, FIXED.values(), both=False)} == {"answered"}


# Scripts at random, of all that a plain one can have; one value in ten is of the wrong kind.
def mostly(strategy):
    return st.integers(0, 9).flatmap(lambda number: strategy if number else st.sampled_from(['"Two?"', "3", "None", "question", "a", "[a, b]", "c"]))


AGENT = mostly(st.one_of(st.sampled_from("ab"), st.builds("Agent({}, {}{})".format, st.sampled_from(['"a"', '"b c"', "7"]), st.sampled_from(['"Solve it."', '"Check it."', '"i"']),
                                                          st.sampled_from(["", ", memory=True", ', tools=["python"]', ", max_turns=1"]))))
AGENTS = mostly(st.one_of(st.builds("[{}, {}]".format, AGENT, AGENT), st.builds("[{}] * {}".format, AGENT, st.integers(1, 3))))
TEXT = mostly(st.one_of(st.just("question"), st.just("c"), st.builds("{}(question)".format, AGENT)))
REPLY = mostly(st.one_of(st.builds("{}({})".format, AGENT, TEXT), st.builds("vote({}, {})".format, AGENTS, TEXT), st.builds("vote({}, {}, judge={})".format, AGENTS, TEXT, AGENT),
                         st.builds("judge({}, {}, ask_all({}, {}))".format, AGENT, TEXT, AGENTS, TEXT), st.builds("reflect({}, {}, {})".format, AGENT, AGENT, TEXT),
                         st.builds("debate({}, {}, rounds={})".format, AGENTS, TEXT, st.integers(0, 2)), st.builds("route({}, {}, {})".format, AGENT, AGENTS, TEXT)))
STATEMENT = st.one_of(st.builds("c = {}".format, REPLY), st.builds("a = {}".format, AGENT), REPLY)
SCRIPTS = st.builds(lambda lines, last: "\n".join([A.strip(), B.strip(), "c = question", *lines, f"submit({last})"]), st.lists(STATEMENT, max_size=3), REPLY)


@settings(max_examples=12, deadline=None)
@given(st.lists(SCRIPTS, min_size=20, max_size=20))
def test_random_scripts_end_the_same(policy, scripts):
    scripts = [script for script in scripts if plain.read(script)]
    for script, (here, there) in zip(scripts, run(policy, scripts, budget=Budget(calls=12, reply_tokens=48))):
        assert here == there, script
