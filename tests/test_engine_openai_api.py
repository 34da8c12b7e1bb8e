"""A server as the model: its answers are used, its failures are asked again, and what is left is
infrastructure, never a 0."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from conftest import QUESTION, ROOT, Half

from engines.openai_api import ChatEngine
from executor import Runtime
from lib.errors import EngineError, PromptTooLong
from lib.statistics import record, summarise
from rollout import Rollout
from sandbox import Sandbox

SCRIPT = 'submit(Agent("a", "i")(question))'


def sample(server, max_tokens=5, **settings):
    async def go():
        engine = ChatEngine(server["url"], "m", **{"pause": 0.01, "timeout": 2.0, **settings})
        return await engine.sample(
            engine.render([{"role": "user", "content": "hello"}]), max_tokens, 3, 0.5
        ), engine

    return asyncio.run(go())


def test_an_answer(server):
    completion, engine = sample(server)
    assert (
        completion.text == "hi"
        and len(completion.ids) == 7 == engine.tokens
        and not completion.truncated
        and engine.retries == 0
    )
    (request,) = server["seen"]
    assert (
        request["messages"] == [{"role": "user", "content": "hello"}]
        and request["max_tokens"] == 5
        and request["temperature"] == 0.5
        and request["seed"] == 3
    )


@pytest.mark.parametrize(
    "bad",
    [
        500,
        503,
        429,
        b"nonsense",
        b"{}",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"",
        Half(b'{"choices": [{"message": {"content": "at'),
        None,
    ],
)
def test_a_server_that_fails_twice_is_asked_again(server, bad):
    server["behave"] = lambda messages, number: "at last" if number > 2 else bad
    completion, engine = sample(server, timeout=0.5)
    assert completion.text == "at last" and engine.retries == 2


def chat_answer(content, finish_reason) -> bytes:
    choice = {"finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
    usage = {"completion_tokens": 7}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_without_a_text_that_was_cut_off_is_the_models(server, reason):
    """Unfinished, asked once: not infrastructure, which would leave it out of the mean."""
    server["behave"] = lambda messages, number: chat_answer(None, reason)
    completion, engine = sample(server)
    assert completion.text == "" and completion.truncated
    assert len(completion.ids) == 7 and engine.retries == 0 and len(server["seen"]) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_not_asked_again(server, status):
    server["behave"] = lambda messages, number: status
    with pytest.raises(EngineError, match="OPENAI_API_KEY"):
        sample(server)
    assert len(server["seen"]) == 1


def test_no_request_is_logged(server, caplog):
    caplog.set_level("INFO")
    sample(server)
    assert not caplog.records


def test_a_server_that_fails_for_ever_is_an_error_and_so_is_none(server):
    server["behave"] = lambda messages, number: 500
    with pytest.raises(EngineError, match="3 tries"):
        sample(server, tries=3)
    with pytest.raises(EngineError):
        sample({"url": "http://127.0.0.1:9/v1"}, tries=2)


def test_a_prompt_that_is_too_long_is_not_asked_again(server):
    server["behave"], server["message"] = (
        (lambda messages, number: 400),
        "This model's maximum context length is 5 tokens",
    )
    with pytest.raises(PromptTooLong):
        sample(server)
    assert len(server["seen"]) == 1


def test_what_does_not_fit_beside_the_prompt_is_asked_for_less(server):
    """vLLM's server refuses a prompt whose max_tokens go beyond its context."""
    server["behave"] = lambda messages, number: 400 if number <= 2 else "hi"
    server["message"] = "maximum context length is 100 tokens; you requested 80 output tokens"
    completion, _ = sample(server, max_tokens=80)
    assert completion.text == "hi"
    assert [request["max_tokens"] for request in server["seen"]] == [80, 40, 20]


@pytest.mark.parametrize("status", [400, 422])
def test_thinking_is_turned_off_where_the_server_can(server, status):
    thinking = "chat_template_kwargs"
    sample(server)
    assert server["seen"][0][thinking] == {"enable_thinking": False}

    server["behave"] = lambda messages, number: status if number == 2 else "hi"
    server["message"] = f"Unrecognized request argument supplied: {thinking}"
    completion, engine = sample(server)
    assert completion.text == "hi"
    assert [thinking in request for request in server["seen"]] == [True, True, False]


def test_failures_are_infrastructure_and_never_a_zero(server):
    """Of six questions two cannot be had: four count, all right."""
    server["behave"] = lambda messages, number: (
        500 if "bad" in messages[-1]["content"] else r"\\boxed{42}"
    )

    async def go():
        engine = ChatEngine(server["url"], "m", tries=2, pause=0.01)
        async with Sandbox() as sandbox:
            rollout = Rollout(Runtime(engine, engine, sandbox))
            questions = []
            for i in range(6):
                prompt = "bad" if i < 2 else f"good {i}"
                questions.append(replace(QUESTION, id=str(i), prompt=prompt))
            return await rollout.rollout(questions, 1, 1, ("t",), SCRIPT), engine

    trees, engine = asyncio.run(go())
    statuses = Counter(tree.executions[0][0].status for tree in trees)
    assert statuses == {"infra_error": 2, "answered": 4} and engine.retries == 2
    result = summarise("x", "single", [record(tree) for tree in trees])
    assert result.accuracy == 1.0 and len(result.correct) == 4 and result.infra_errors == 2


def test_the_command(server, tmp_path):
    server["behave"] = lambda messages, number: (
        "```python\n" + SCRIPT + "\n```" if "Design" in messages[0]["content"] else r"\\boxed{4}"
    )
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": 4}))
    flags = ["--model", server["url"] + "#m", "--samples", "2"]
    flags += ["--tasks", "q.jsonl", "--modes", "single,self-consistency,metaagent", "--out", "out"]
    command = [sys.executable, str(ROOT / "eval.py"), *flags]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [row["accuracy"] for row in rows] == [1.0] * 3
    assert rows[2]["calls"] == 1.0 and rows[2]["tokens"] == 14.0
