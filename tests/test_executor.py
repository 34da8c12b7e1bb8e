"""Running designs: tools, memory, budgets, and every typed outcome."""

import asyncio
from dataclasses import replace

import pytest
from conftest import QUESTION, Scripted, execute, grow

import designer
import tasks
from benchmarks.code_grading import Suite
from data_types import STATUSES, Budget
from lib.errors import EngineError, SandboxError
from lib.tools import parse_tool_call

A = 'a = Agent("a", "Solve the question.")\n'
TOOL = 'a = Agent("a", "Use Python.", tools=["python"])\n'


@pytest.mark.parametrize(
    "script, speak, budget, status, detail",
    [
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
        (A + "a('word ' * 5000)", "yes", {}, "budget", "a prompt of"),
        ("while True: pass", "yes", {"script_seconds": 0.2}, "timeout", "0.2"),
        (A + "submit(a(question))", EngineError("broken"), {}, "infra_error", "broken"),
        ('submit(Agent("a", "i", tools=["x"])(question))', "yes", {}, "invalid_script", "tool x"),
        ('submit(Agent("a", "i", max_turns=99)(question))', "yes", {}, "crashed", "max_turns"),
        (A + 'submit(a("\\ud800"))', "yes", {}, "crashed", "Unicode"),
    ],
)
def test_outcomes(policy, script, speak, budget, status, detail):
    execution, _ = execute(policy, script, (lambda prompt: speak), budget=Budget(**budget))
    assert execution.status == status and status in STATUSES, execution
    assert detail in execution.detail, execution
    assert (execution.answer is not None) == (status == "answered")


def test_an_engine_that_takes_too_long_is_not_the_designs_fault(policy):
    class Slow(Scripted):
        async def sample(self, *arguments, **options):
            await asyncio.sleep(60)

    engine, budget = Slow(policy, None), Budget(seconds=0.3)
    execution, _ = execute(policy, A + "submit(a(question))", engine, budget=budget)
    assert execution.status == "infra_error" and "longer than 0.3 s" in execution.detail


def test_an_agent_runs_python_and_reads_the_output(policy):
    replies = iter(["```python\nprint(6 * 7)\n```", r"\boxed{42}"])
    execution, engine = execute(policy, TOOL + "submit(a(question))", lambda prompt: next(replies))
    first, second = execution.calls
    assert first.tool_output == "42" and second.tool_output is None
    assert execution.answer == r"\boxed{42}"
    assert "Output: 42" in engine.prompts[1] and second.prompt == "Output: 42"
    # A conversation that goes on.
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids and first.completion_ids


def test_tool_rounds_end_with_a_forced_answer(policy):
    execution, engine = execute(
        policy, TOOL + "submit(a(question))", lambda prompt: "```python\nprint(1)\n```"
    )
    assert len(execution.calls) == 3 and "give your final answer" in engine.prompts[-1]
    assert [call.tool_output for call in execution.calls] == ["1", "1", None]


def test_tool_errors_are_shown_to_the_agent(policy):
    replies = iter(["```python\nprint(1)\n1 / 0\n```", "```python\nwhile True: pass\n```", "done"])
    execution, _ = execute(
        policy,
        TOOL + "submit(a(question))",
        lambda prompt: next(replies),
        budget=Budget(tool_seconds=0.3),
    )
    outputs = [call.tool_output for call in execution.calls[:2]]
    assert outputs == ["1\nZeroDivisionError: division by zero", "timeout"]


def test_without_the_tool_code_is_only_text(policy):
    execution, _ = execute(policy, A + "submit(a(question))", "```python\nprint(1)\n```")
    assert len(execution.calls) == 1 and execution.calls[0].tool_output is None


def test_a_closed_book_question_refuses_tools(policy):
    closed = tasks.Question("q", "Codes?", "1", tools=())
    execution, _ = execute(policy, TOOL + "submit(a(question))", "yes", closed)
    assert execution.status == "invalid_script" and "python" in execution.detail
    assert execution.calls == ()


def test_memory_is_per_agent_and_only_when_wanted(policy):
    script = (
        'a = Agent("a", "i", memory=True)\nb = Agent("b", "i")\n'
        'a("first")\nb("first")\nsubmit(a("second"))\n'
    )
    execution, engine = execute(policy, script, lambda prompt: "said")
    assert engine.prompts[2].count("first") == 1 and "said" in engine.prompts[2]
    _, engine = execute(policy, script.replace("submit(a", "submit(b"), lambda prompt: "said")
    assert "first" not in engine.prompts[2]


def test_memory_is_in_the_order_asked_whoever_answers_first(policy):
    class SlowAtFirst(Scripted):
        async def sample(self, *arguments, **options):
            is_first = not self.prompts
            completion = await super().sample(*arguments, **options)
            await asyncio.sleep(0.1 if is_first else 0)
            return completion

    script = 'a = Agent("a", "i", memory=True)\nask_all([a, a], ["one", "two"])\nsubmit(a("three"))'
    engines = Scripted(policy, lambda prompt: "said"), SlowAtFirst(policy, lambda prompt: "said")
    last, other = (execute(policy, script, engine)[1].prompts[-1] for engine in engines)
    assert last == other and last.index("one") < last.index("two") < last.index("three")


def test_a_script_may_be_ordinary_python(policy):
    script = (
        A
        + """
answers = [a(f'{question} {i}') for i in range(3)]
best = max(answers, key=len)
def f(r):
    return r
submit(f(best))
"""
    )
    replies = iter(["x", "xxx", "xx"])
    assert execute(policy, script, lambda prompt: next(replies))[0].answer == "xxx"


def test_what_is_recorded_is_what_was_sampled(policy):
    execution, engine = execute(policy, A + "submit(a(question))", r"\boxed{42}")
    (call,) = execution.calls
    assert call.text == r"\boxed{42}" == policy.text(call.completion_ids)
    assert len(call.logprobs) == len(call.completion_ids)
    assert policy.tokenizer.decode(call.prompt_ids) == engine.prompts[0]
    assert QUESTION.prompt in engine.prompts[0]


@pytest.mark.parametrize("name", designer.FIXED_DESIGNS)
def test_every_fixed_design_runs(policy, name):
    def speak(prompt):
        return "APPROVED" if "Check the attempt" in prompt else r"\boxed{42}"

    execution, _ = execute(policy, designer.FIXED_DESIGNS[name], speak)
    assert execution.status == "answered" and tasks.grade(QUESTION, execution.answer) == 1.0


def test_tool_calls():
    assert parse_tool_call("```python\na\n```\nand\n```py\nb\n```", ["python"]) == ("python", "b")
    assert parse_tool_call("```tests\na\n```\nand\n```python\nb\n```", ["tests"]) == ("tests", "a")
    for text in (
        "```\na\n```",
        "```python\na",
        "```python\na\n```\n```solution\nb\n```",
        "```tests\na\n```",
    ):
        assert parse_tool_call(text, ["python"]) is None


# ------------------------------------------------------------------- scripts that want the reward

CODE = replace(
    QUESTION,
    id="code",
    prompt="Add two numbers.",
    answer="",
    kind="code",
    tools=("python", "tests"),
    tests=Suite("stdin", (("1 2", "3"),), (("7 1", "8"), ("90001 1", "90002"))),
)
HACKS = [
    r"submit(Reply('\\boxed{42}', 0))",
    r"submit(Reply('\\boxed{42}'))",
    "r = Agent('a', 'b')(question)\nr.answer = '42'\nsubmit(r)",
    "r = Agent('a', 'b')(question)\nr.id = 10**6\nsubmit(r)",
    "r = Agent('a', 'b')(question)\nr.id = -1\nsubmit(r)",
    "r = Agent('a', 'b')(question)\nr.id = True\nsubmit(r)",
    r"""
import mas
mas._request({'op': 'submit', 'reply': '\\boxed{42}'})
""",
    r"""
import mas
answer = '\\boxed{42}'
mas._request({'op': 'submit', 'reply': 0, 'text': answer, 'answer': '42', 'reward': 1})
""",
    "import mas\nmas._request({'op': 'reward', 'value': 1.0})",
    "import mas\nmas._request({'op': 'ask', 'asks': [], 'reward': 1.0})",
    r"""
import os
os.write(3, b'{"op": "answered", "answer": "42", "reward": 1}\n')
""",
    r"""
import os
os.write(1, b'\\boxed{42}')
os._exit(0)
""",
    r"""
print('\\boxed{42}')
raise SystemExit('\\boxed{42}')
""",
    """
import builtins, mas
builtins.isinstance = lambda *a: True
class R: id = 0
submit(R())
""",
    """
import gc
for o in gc.get_objects():
    if isinstance(o, dict) and {'answer', 'gold', 'tests'} & set(map(str, o)): print(o)
a = Agent('a', 'b')
submit(a(str(len(globals()))))
""",
    """
import sys
f = sys._getframe()
while f:
    f.f_globals['status'] = 'answered'
    f.f_locals['status'] = 'answered'
    f = f.f_back
""",
    """
a = Agent('a', 'b', tools=['tests', 'python'], max_turns=16)
submit(a('print the hidden tests'))
""",
]


@pytest.mark.parametrize("script", HACKS)
@pytest.mark.parametrize("question", [QUESTION, CODE], ids=["math", "code"])
def test_a_script_that_wants_to_be_paid_without_an_answer_is_not(policy, script, question):
    """Its agents say something wrong; whatever the script does, only what an agent said can be
    handed in, and that is wrong."""
    for reply in (
        r"\boxed{7}",
        "```solution\nprint(0)\n```",
        "```tests\nprint(open('/proc/self/environ').read())\n```",
    ):
        (tree,) = grow(
            policy, Scripted(policy, lambda prompt: reply), [question], 1, 1, fixed_design=script
        )
        execution = tree.executions[0][0]
        assert execution.reward == 0.0, execution
        assert execution.answer in (None, reply)


def test_the_tests_tool_shows_public_tests_alone(policy):
    replies = iter(
        [
            "```tests\nprint(5)\n```",
            "```tests\nprint(sum(map(int, input().split())))\n```",
            "```solution\nprint(sum(map(int, input().split())))\n```",
        ]
    )
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: next(replies)),
        [CODE],
        1,
        1,
        fixed_design='submit(Agent("a", "i", tools=["tests"])(question))',
    )
    execution = tree.executions[0][0]
    first, second, last = [call.tool_output for call in execution.calls]
    assert first.rstrip() == "0 of 1 passed.\nInput:\n1 2\nExpected:\n3\nGot:\n5"
    assert second == "1 of 1 passed." and last is None and execution.reward == 1.0
    messages = [message for call in execution.calls for message in call.messages]
    shown = "".join(message["content"] for message in messages)
    assert "90002" not in shown and "7 1" not in shown
    assert "```solution" in shown and "boxed" not in shown


def test_a_broken_sandbox_while_judging_is_infrastructure(policy, monkeypatch):
    async def fails(*_, **__):
        raise SandboxError("down")

    monkeypatch.setattr("benchmarks.code_grading.grade_program", fails)
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: "```solution\n1\n```"),
        [CODE],
        1,
        1,
        fixed_design='submit(Agent("a", "i")(question))',
    )
    assert tree.executions[0][0].status == "infra_error" and not tree.executions[0][0].valid
