"""Running designs: tools, memory, budgets, and every typed outcome."""
import asyncio
from dataclasses import replace

import pytest
from conftest import QUESTION, Scripted, execute, grow

import designer
import tasks
from executor import STATUSES, Budget, Executor, tool_call
from policy import EngineError
from programs import Suite
from sandbox import Outcome, Sandbox, SandboxError

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


def test_the_same_snippet_runs_once(policy, monkeypatch):
    counted, run = [], Sandbox.run

    async def counting(self, code, *arguments, **options):
        counted.append(code)
        return await run(self, code, *arguments, **options)

    monkeypatch.setattr(Sandbox, "run", counting)
    replies = iter(["```python\nprint(6 * 7)\n```"] * 3 + ["```python\nprint(6 * 8)\n```"] * 3 + ["done"] * 3)
    execution, _ = execute(policy, TOOL + "submit(ask_all([a] * 3, question)[0])", lambda prompt: next(replies))
    assert sorted(call.tool_output or "" for call in execution.calls) == [""] * 3 + ["42"] * 3 + ["48"] * 3
    assert [code for code in counted if code.startswith("print")] == ["print(6 * 7)", "print(6 * 8)"]


def test_a_tool_run_that_the_machine_spoiled_is_not_kept(policy, monkeypatch):
    """The sandbox's failure and a timeout are shared by those who wait, and tried again by the next; an ordinary error is kept."""
    ends = [SandboxError("no descriptors"), Outcome("timeout", "", "", 5.0, "none"), Outcome("error", "", "NameError: x", 0.0, "none"), None]

    async def run(self, code, *arguments, **options):
        await asyncio.sleep(0)
        if isinstance(end := ends.pop(0), SandboxError):
            raise end
        return end

    async def go():
        executor = Executor(None, policy, Sandbox())
        return [await asyncio.gather(*(executor.run_tool("x") for _ in range(2)), return_exceptions=True) for _ in range(4)]

    monkeypatch.setattr(Sandbox, "run", run)
    failed, timeout, error, again = asyncio.run(go())
    assert all(isinstance(one, SandboxError) for one in failed) and timeout == ["timeout"] * 2 and error == again == ["NameError: x"] * 2 and ends == [None]


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


# ------------------------------------------------------------------------------------------------ scripts that want the reward

CODE = replace(QUESTION, id="code", prompt="Add two numbers.", answer="", kind="code", tools=("python", "tests"),
               tests=Suite("stdin", (("1 2", "3"),), (("7 1", "8"), ("90001 1", "90002"))))
HACKS = [
    "submit(Reply('\\\\boxed{42}', 0))",
    "submit(Reply('\\\\boxed{42}'))",
    "a = Agent('a', 'b')\nr = a(question)\nr.answer = '42'\nsubmit(r)",
    "a = Agent('a', 'b')\nr = a(question)\nr.id = 10**6\nsubmit(r)",
    "a = Agent('a', 'b')\nr = a(question)\nr.id = -1\nsubmit(r)",
    "a = Agent('a', 'b')\nr = a(question)\nr.id = True\nsubmit(r)",
    "import mas\nmas._request({'op': 'submit', 'reply': '\\\\boxed{42}'})",
    "import mas\nmas._request({'op': 'submit', 'reply': 0, 'text': '\\\\boxed{42}', 'answer': '42', 'reward': 1})",
    "import mas\nmas._request({'op': 'reward', 'value': 1.0})",
    "import mas\nmas._request({'op': 'ask', 'asks': [], 'reward': 1.0})",
    "import os\nos.write(3, b'{\"op\": \"answered\", \"answer\": \"42\", \"reward\": 1}\\n')",
    "import os\nos.write(1, b'\\\\boxed{42}')\nos._exit(0)",
    "print('\\\\boxed{42}')\nraise SystemExit('\\\\boxed{42}')",
    "import builtins, mas\nbuiltins.isinstance = lambda *a: True\nclass R: id = 0\nsubmit(R())",
    "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and {'answer', 'gold', 'tests'} & set(map(str, o)): print(o)\na = Agent('a', 'b')\nsubmit(a(str(len(globals()))))",
    "import sys\nf = sys._getframe()\nwhile f:\n    f.f_globals['status'] = 'answered'\n    f.f_locals['status'] = 'answered'\n    f = f.f_back",
    "a = Agent('a', 'b', tools=['tests', 'python'], max_turns=16)\nsubmit(a('print the hidden tests'))",
]


@pytest.mark.parametrize("script", HACKS)
@pytest.mark.parametrize("question", [QUESTION, CODE], ids=["math", "code"])
def test_a_script_that_wants_to_be_paid_without_an_answer_is_not(policy, script, question):
    """Its agents say something wrong; whatever the script does, only what an agent said can be handed in, and that is wrong."""
    for said in (r"\boxed{7}", "```solution\nprint(0)\n```", "```tests\nprint(open('/proc/self/environ').read())\n```"):
        tree, = grow(policy, Scripted(policy, lambda prompt: said), [question], 1, 1, fixed=script)
        execution, reward = tree.executions[0][0], tree.rewards_M_N.item()
        assert reward == 0.0, execution
        assert execution.answer in (None, said)


def test_the_tests_tool_shows_public_tests_alone(policy):
    said = iter(["```tests\nprint(5)\n```", "```tests\nprint(sum(map(int, input().split())))\n```", "```solution\nprint(sum(map(int, input().split())))\n```"])
    tree, = grow(policy, Scripted(policy, lambda prompt: next(said)), [CODE], 1, 1, fixed='submit(Agent("a", "i", tools=["tests"])(question))')
    outputs = [call.tool_output for call in tree.executions[0][0].calls]
    assert outputs == ["0 of 1 passed.\nInput:\n1 2\nExpected:\n3\nGot:\n5", "1 of 1 passed.", None] or outputs[0].endswith("Got:\n5\n")
    assert tree.rewards_M_N.item() == 1.0
    shown = "".join(message["content"] for call in tree.executions[0][0].calls for message in call.messages)
    assert "90002" not in shown and "7 1" not in shown and "```solution" in shown and "boxed" not in shown


def test_a_broken_sandbox_while_judging_is_infrastructure(policy, monkeypatch):
    async def fails(*_, **__):
        raise SandboxError("down")

    monkeypatch.setattr("programs.grade", fails)
    tree, = grow(policy, Scripted(policy, lambda prompt: "```solution\n1\n```"), [CODE], 1, 1, fixed='submit(Agent("a", "i")(question))')
    assert tree.executions[0][0].status == "infrastructure" and not tree.valid_M_N.any()
