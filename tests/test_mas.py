"""The building blocks, with agents whose replies are given: each does what its docstring says."""

import pytest

import mas
from lib.answers import final_answer
from mas import Agent, Reply, ask_all, debate, judge, reflect, route, submit, vote


@pytest.fixture
def said(monkeypatch):
    """Give each agent its replies in order; returns the list of what was asked: (agent, text)."""
    script, asked = {}, []

    def request(message):
        if message["op"] == "submit":
            return {}
        replies = []
        for ask in message["asks"]:
            asked.append((ask["name"], ask["text"]))
            text = script[ask["name"]].pop(0)
            replies.append({"id": len(asked) - 1, "text": text, "answer": final_answer(text)})
        return {"replies": replies}

    monkeypatch.setattr(mas, "_request", request)

    def prepare(**replies):
        script.update({name: list(texts) for name, texts in replies.items()})
        return asked

    return prepare


def box(*values):
    return [f"\\boxed{{{value}}}" for value in values]


A, B, C, J = (Agent(name, "instructions") for name in "ABCJ")


def test_a_reply_is_a_string_with_an_answer(said):
    said(A=["I think \\boxed{4}"])
    reply = A("2+2?")
    assert (
        reply == "I think \\boxed{4}"
        and reply.answer == "4"
        and reply.agent == "A"
        and isinstance(reply, Reply)
    )


def test_ask_all_takes_one_text_or_one_each(said):
    asked = said(A=["x", "x"], B=["y", "y"])
    assert ask_all([A, B], "same") == ["x", "y"]
    ask_all([A, B], ["first", "second"])
    assert asked == [("A", "same"), ("B", "same"), ("A", "first"), ("B", "second")]
    with pytest.raises(ValueError):
        ask_all([A, B], ["only one"])
    with pytest.raises(ValueError):
        ask_all([], "nobody")


@pytest.mark.parametrize("answers, winner", [((1, 2, 2), 2), ((1, 2, 3), 1), ((3, 3, 3), 3)])
def test_vote_takes_the_most_common_and_the_earliest_on_a_tie(said, answers, winner):
    said(A=box(answers[0]), B=box(answers[1]), C=box(answers[2]))
    assert vote([A, B, C], "q").answer == str(winner)


def test_vote_ignores_replies_without_an_answer(said):
    said(A=["no idea"], B=["no idea"], C=box(7))
    assert vote([A, B, C], "q").answer == "7"


def test_the_judge_of_a_vote_is_asked_only_on_a_tie(said):
    asked = said(A=box(1, 1), B=box(2, 1), J=box(2))
    assert (
        vote([A, B], "q", judge=J).answer == "2"
        and asked[-1][0] == "J"
        and "\\boxed{1}" in asked[-1][1]
    )
    assert vote([A, B], "q", judge=J).answer == "1" and asked[-1][0] == "B"


def test_vote_with_no_answer_at_all(said):
    said(A=["?"], B=["??"], J=box(5))
    assert vote([A, B], "q", judge=J).answer == "5"


def test_judge_reads_the_question_and_every_reply(said):
    asked = said(A=box(1), B=box(2), J=box(2))
    judge(J, "the question", ask_all([A, B], "the question"))
    assert all(
        part in asked[-1][1]
        for part in ("the question", "Reply 1: \\boxed{1}", "Reply 2: \\boxed{2}")
    )


def test_reflect_stops_when_the_critic_approves(said):
    asked = said(A=box(1, 2, 3), B=["No.", "APPROVED"])
    assert reflect(A, B, "q", rounds=5).answer == "2"
    assert (
        [name for name, _ in asked] == ["A", "B", "A", "B"]
        and "No." in asked[2][1]
        and "\\boxed{1}" in asked[2][1]
    )


def test_reflect_ends_after_its_rounds(said):
    said(A=box(1, 2, 3), B=["No."] * 9)
    assert reflect(A, B, "q", rounds=2).answer == "3"


def test_debate_shows_everyone_everything(said):
    asked = said(A=box(1, 2), B=box(2, 2))
    assert debate([A, B], "q", rounds=1).answer == "2"
    assert (
        "Reply 1: \\boxed{1}" in asked[2][1]
        and "Reply 2: \\boxed{2}" in asked[3][1]
        and len(asked) == 4
    )


@pytest.mark.parametrize("choice, winner", [("I choose B.", "B"), ("nobody fits", "A")])
def test_route_asks_the_agent_that_is_named(said, choice, winner):
    asked = said(J=[choice], A=["a"], B=["b"])
    assert route(J, [A, B], "q").agent == winner and "A, B" in asked[0][1]


def test_route_finds_a_name_that_ends_in_a_symbol(said):
    experts = [Agent("c", ""), Agent("c++", "")]
    said(J=["Ask c++."] * 2, **{"c++": ["b"] * 2, "c": ["a"] * 2})
    assert route(J, experts, "q").agent == route(J, experts[::-1], "q").agent == "c++"


def test_submit_takes_replies_and_ends(said):
    said(A=["x"])
    with pytest.raises(TypeError, match="Reply"):
        submit("42")
    with pytest.raises(SystemExit):
        submit(A("q"))


def test_outside_the_sandbox_nothing_speaks():
    with pytest.raises(RuntimeError, match="sandbox"):
        A("q")
