"""Running designs: tools, memory, budgets, and every typed outcome."""
import pytest
from conftest import QUESTION, execute

import designer
import tasks
from executor import STATUSES, Budget, tool_call
from policy import EngineError

A = 'a = Agent("a", "Solve the question.")\n'
TOOL = 'a = Agent("a", "Use Python.", tools=["python"])\n'


@pytest.mark.parametrize("script, speak, budget, status, detail", [
    (A + "submit(a(question))", "yes", {}, "answered", ""),
    (A + "a(question)", "yes", {}, "no_answer", "submit"),
    ("", "yes", {}, "no_answer", "submit"),
    (A + "submit(a(question)", "yes", {}, "invalid_script", "SyntaxError"),
    ("Let me think.", "yes", {}, "invalid_script", "SyntaxError"),
    ("submit(nobody(question))", "yes", {}, "crashed", "NameError"),
    ("import os; os._exit(3)", "yes", {}, "crashed", ""),
    (A + "while True: a(question)", "yes", {"calls": 3}, "budget", "3 calls"),
    (A + "while True: a(question)", "yes " * 20, {"tokens": 30}, "budget", "30 tokens"),
    (A + "ask_all([a] * 5, question)", "yes", {"calls": 3}, "budget", "3 calls"),
    (A + "a('word ' * 5000)", "yes", {}, "answered", ""),
    ("while True: pass", "yes", {"script_seconds": 0.2}, "timeout", "0.2"),
    (A + "import time\ntime.sleep(9)", "yes", {"seconds": 0.3}, "timeout", "0.3"),
    (A + "submit(a(question))", EngineError("broken"), {}, "infrastructure", "broken"),
    ('submit(Agent("a", "i", tools=["browser"])(question))', "yes", {}, "invalid_script", "browser"),
    ('submit(Agent("a", "i", max_turns=99)(question))', "yes", {}, "crashed", "max_turns"),
    (A + 'submit(a("\\ud800"))', "yes", {}, "crashed", "Unicode"),
])
def test_outcomes(policy, script, speak, budget, status, detail):
    if status == "answered" and "5000" in script:
        script += "\nsubmit(a(question))"  # the scripted engine takes prompts of any length
    execution, _ = execute(policy, script, (lambda prompt: speak), budget=Budget(**budget))
    assert execution.status == status and detail in execution.detail and status in STATUSES, execution
    assert (execution.answer is not None) == (status == "answered")


def test_an_agent_runs_python_and_reads_the_output(policy):
    replies = iter(["```python\nprint(6 * 7)\n```", r"\boxed{42}"])
    execution, engine = execute(policy, TOOL + "submit(a(question))", lambda prompt: next(replies))
    first, second = execution.calls
    assert first.tool_output == "42" and second.tool_output is None and execution.answer == r"\boxed{42}"
    assert "Output: 42" in engine.prompts[1] and second.prompt == "Output: 42"
    assert first.completion_ids and second.prompt_ids[:len(first.prompt_ids)] == first.prompt_ids  # a conversation that goes on


def test_tool_rounds_end_with_a_forced_answer(policy):
    execution, engine = execute(policy, TOOL + "submit(a(question))", lambda prompt: "```python\nprint(1)\n```")
    assert len(execution.calls) == 3 and "give your final answer" in engine.prompts[-1]
    assert [call.tool_output for call in execution.calls] == ["1", "1", None]


def test_tool_errors_are_shown_to_the_agent(policy):
    replies = iter(["```python\nprint(1)\n1 / 0\n```", "```python\nwhile True: pass\n```", "done"])
    execution, _ = execute(policy, TOOL + "submit(a(question))", lambda prompt: next(replies), budget=Budget(tool_seconds=0.3))
    assert execution.calls[0].tool_output == "1\nZeroDivisionError: division by zero" and execution.calls[1].tool_output == "timeout"


def test_without_the_tool_code_is_only_text(policy):
    execution, _ = execute(policy, A + "submit(a(question))", "```python\nprint(1)\n```")
    assert len(execution.calls) == 1 and execution.calls[0].tool_output is None


def test_a_closed_book_question_refuses_tools(policy):
    closed = tasks.Question("q", "Codes?", "1", tools=())
    execution, _ = execute(policy, TOOL + "submit(a(question))", "yes", closed)
    assert execution.status == "invalid_script" and "python" in execution.detail and execution.calls == ()


def test_memory_is_per_agent_and_only_when_wanted(policy):
    script = 'a = Agent("a", "i", memory=True)\nb = Agent("b", "i")\na("first")\nb("first")\nsubmit(a("second"))\n'
    execution, engine = execute(policy, script, lambda prompt: "said")
    assert engine.prompts[2].count("first") == 1 and "said" in engine.prompts[2]
    _, engine = execute(policy, script.replace("submit(a", "submit(b"), lambda prompt: "said")
    assert "first" not in engine.prompts[2]


def test_a_script_may_be_ordinary_python(policy):
    script = A + "answers = [a(f'{question} {i}') for i in range(3)]\nbest = max(answers, key=len)\ndef f(r):\n    return r\nsubmit(f(best))"
    replies = iter(["x", "xxx", "xx"])
    assert execute(policy, script, lambda prompt: next(replies))[0].answer == "xxx"


def test_what_is_recorded_is_what_was_sampled(policy):
    execution, engine = execute(policy, A + "submit(a(question))", r"\boxed{42}")
    call, = execution.calls
    assert call.text == r"\boxed{42}" and policy.text(call.completion_ids) == call.text and len(call.logprobs) == len(call.completion_ids)
    assert policy.tokenizer.decode(call.prompt_ids) == engine.prompts[0] and QUESTION.prompt in engine.prompts[0]


@pytest.mark.parametrize("name", designer.FIXED)
def test_every_fixed_design_runs(policy, name):
    def speak(prompt):
        return "APPROVED" if "Check the attempt" in prompt else r"\boxed{42}"

    execution, _ = execute(policy, designer.FIXED[name], speak)
    assert execution.status == "answered" and tasks.grade(QUESTION, execution.answer) == 1.0


def test_tool_calls():
    assert tool_call("```python\na\n```\nand\n```py\nb\n```", ["python"]) == ("python", "b")
    assert tool_call("```tests\na\n```\nand\n```python\nb\n```", ["tests"]) == ("tests", "a")
    for text in ("```\na\n```", "```python\na", "```python\na\n```\n```solution\nb\n```", "```tests\na\n```"):
        assert tool_call(text, ["python"]) is None


def test_design_without_a_script(policy):
    from conftest import Scripted
    import asyncio
    for text, error in (("", "empty"), ("word " * 400, "cut off")):
        design = asyncio.run(designer.design(Scripted(policy, lambda prompt: text), policy, QUESTION, ("s",), max_tokens=50))
        assert error in design.error and design.completion_ids
