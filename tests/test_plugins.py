"""Plug-ins: a file of the reader's own changes the method; a wrong one ends in one line."""

import asyncio
import json
import shutil

import pytest
import torch
from conftest import QUESTION, ROOT, SMALL_RUN, Scripted, execute, grow, lines

import credit
import designer
import eval as evaluation
import executor
import mas
import tasks
import train
from config import Config
from lib import plugins, tools
from lib.errors import PluginError, UserError

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What a plug-in changes is as before afterwards."""
    for name, (place, _) in plugins.FUNCTIONS.items():
        monkeypatch.setattr(place, name, getattr(place, name))
    dictionaries = tools.TOOLS, tasks.WORLDS
    lists = tasks.MORE_TOOLS, executor.MORE_BLOCKS, mas.__all__
    before = [part.copy() for part in (*dictionaries, *lists)]
    yield
    for part in (*dictionaries, *lists):
        part.clear()
    for part, copy in zip((*dictionaries, *lists), before):
        part.update(copy) if isinstance(part, dict) else part.extend(copy)


def write(tmp_path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


# ------------------------------------------------------------------------------------ the examples


def load_example(name: str, tmp_path) -> None:
    """From a folder outside the checkout, as a reader would."""
    shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    plugins.load(str(tmp_path / f"{name}.py"))


def test_examples_are_short_and_each_is_tested():
    files = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    text = (ROOT / "tests" / "test_plugins.py").read_text()
    readme = (ROOT / "README.md").read_text()
    for name in files:
        count = len((EXAMPLES / f"{name}.py").read_text().splitlines())
        assert f"(examples/{name}.py), {count}" in readme
        assert count <= 30
        assert (
            f'"{name}"' in text and f"examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text()
        )


def test_a_reward(tmp_path):
    load_example("reward", tmp_path)
    rewards = [
        asyncio.run(tasks.reward(QUESTION, text, None))
        for text in ("\\boxed{42}", "x" * 200 + "\\boxed{42}", "\\boxed{41}")
    ]
    assert rewards == pytest.approx([1.0, 1.1 - 0.210, 0.0])


def test_questions(tmp_path):
    load_example("questions", tmp_path)
    trained, held_out = (tasks.load("sums", split, 0, 500) for split in ("train", "heldout"))
    assert len(trained) == len(held_out) == 500
    assert not {q.prompt for q in trained} & {q.prompt for q in held_out}


def test_a_tool(policy, tmp_path):
    load_example("tool", tmp_path)
    (question,) = tasks.load("arithmetic", "train", 0, 1)
    assert "lookup" in question.tools
    assert "lookup" in designer.designer_messages(question)[0]["content"]
    replies = iter(["```lookup\nDozen\n```", "\\boxed{12}"])
    script = 'submit(Agent("a", "i", tools=["lookup"])(question))'
    execution, _ = execute(policy, script, Scripted(policy, lambda _: next(replies)), question)
    assert execution.calls[0].tool_output == "12" and execution.answer == "\\boxed{12}"
    assert "the size of a unit" in execution.calls[0].messages[0]["content"]


def test_a_block(policy, tmp_path):
    load_example("block", tmp_path)
    assert "the referee compares two" in designer.designer_messages(QUESTION)[0]["content"]
    script = (
        'a, b, referee = (Agent(name, "i") for name in ("a", "b", "referee"))\n'
        "submit(tournament([a, b], referee, question))"
    )
    replies = iter(["one", "two", "2 is better"])
    execution, _ = execute(policy, script, Scripted(policy, lambda _: next(replies)))
    assert execution.answer == "two" and len(execution.calls) == 3


REWARDS = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
VALID = torch.tensor([[[True, True], [True, True]], [[True, True], [False, True]]])


def test_other_advantages(tmp_path):
    load_example("rloo", tmp_path)
    # Designs 1/2 and 1, 0 and 1; executions: each minus the mean of the others.
    assert credit.designer_advantages(REWARDS, VALID).tolist() == [[-0.5, 0.5], [-1.0, 1.0]]
    expected = [1 - 2 / 3, -1, 1 - 2 / 3, 1 - 2 / 3, -0.5, -0.5, 0, 1]
    found = credit.executor_advantages(REWARDS, VALID, group="question").flatten().tolist()
    assert found == pytest.approx(expected)


def test_one_question_asked_has_other_advantages_too(caplog):
    caplog.set_level("INFO")
    ask = ["--ask", "What is Feki's code?", "--gold", "1", "--executions", "2"]
    evaluation.main([*ask, "--plugin", str(ROOT / "examples" / "rloo.py"), "--reply-tokens", "8"])
    assert "advantage" in caplog.text


def test_advantages_that_are_not_divided(tmp_path):
    load_example("dr_grpo", tmp_path)
    assert credit.designer_advantages(REWARDS, VALID).tolist() == [[-0.25, 0.25], [-0.5, 0.5]]
    expected = [0.25, -0.75, 0.25, 0.25, -1 / 3, -1 / 3, 0, 2 / 3]
    found = credit.executor_advantages(REWARDS, VALID, group="question").flatten().tolist()
    assert found == pytest.approx(expected)


def test_another_loss(tmp_path):
    load_example("gspo", tmp_path)
    new, old = torch.tensor([0.5, 0.5, 0.4]).log(), torch.tensor([0.25, 0.125, 0.4]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0])
    loss, stats = credit.policy_loss(new, old, advantages, (0.2, 0.2), None, [2, 1])
    # A ratio of sqrt(2 * 4) for the first completion, clipped; of 1 for the second.
    assert loss.tolist() == pytest.approx([-1.2, -1.2, 1.0])
    assert stats["clip_frac"] == 2


def test_another_prompt(tmp_path):
    load_example("prompt", tmp_path)
    system, _ = designer.designer_messages(QUESTION)
    assert "\n" not in system["content"] and "debate" in system["content"]


def test_a_run_with_a_plugin(tmp_path):
    """Several parts in one file; its copy is the run's, and a changed file does not resume it."""
    text = "".join((EXAMPLES / f"{name}.py").read_text() for name in ("rloo", "gspo", "reward"))
    text = text.replace("1.1 - 0.001", "1 - 0.001")  # the tiny model's replies are short
    rate = "\n\ndef learning_rate(config, step):\n    return 0.0 if step == 0 else config.lr\n"
    path, out = write(tmp_path, text + rate), tmp_path / "run"
    flags = ["--model", "tiny/arithmetic", "--tasks", "arithmetic", "--stage", "both"]
    flags += ["--eval-every", "0", "--plugin", path, "--out", str(out)]
    train.main([*SMALL_RUN, "--steps", "2", *flags])
    rows = lines(out)
    assert all(0 < row["trained_tokens"] for row in rows)
    assert any(row["reward"] * 24 % 1 for row in rows)  # a long reply earns less
    assert (out / "plugin.py").read_text() == text + rate
    write(tmp_path, text)
    with pytest.raises(UserError, match="is not what the run .* began with"):
        train.main(["--out", str(out), "--resume", "--steps", "3"])


def test_an_evaluation_with_a_plugin(tmp_path):
    """It goes on with the same file alone."""
    path = write(tmp_path, (EXAMPLES / "questions.py").read_text())
    flags = ["--model", "tiny/arithmetic", "--tasks", "sums", "--limit", "2", "--modes", "single"]
    flags += ["--reply-tokens", "24", "--plugin", path, "--out", str(tmp_path / "results")]
    evaluation.main(flags)
    (result,) = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    assert result["tasks"] == "sums" and 0 <= result["accuracy"] <= 1
    write(tmp_path, (EXAMPLES / "questions.py").read_text() + "# another\n")
    with pytest.raises(UserError, match="other settings"):
        evaluation.main(flags)


# -------------------------------------------------------------------------------- what can be wrong

LOSS = "def policy_loss(logprobs_K, old_logprobs_K, advantages_K, clip, dual_clip, lengths):\n    "


@pytest.mark.parametrize(
    "text, problem",
    [
        ("x = 1", "defines none of designer_messages, .*BLOCKS"),
        ("def reward(question", "SyntaxError"),
        ("import nothing_of_the_kind", r"ModuleNotFoundError: .* \(line 1\)"),
        ("x = 1\nraise ValueError('no')", r"ValueError: no \(line 2\)"),
        ("while True: pass", "TimeoutError: took longer than"),
        ("def reward(question): pass", "reward: has to be a function of question, answer"),
        ("reward = 1", "reward: has to be a function of question, answer"),
        ("BLOCKS = {}", "BLOCKS: has to be a list of functions"),
        ("def f(text): pass\nTOOLS = [f]", "TOOLS: has to be a dict of functions"),
        ("def f(text): pass\nTOOLS = {'f': f}", "TOOLS: each needs a docstring"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, text, problem):
    monkeypatch.setattr(plugins, "SECONDS", 0.2)
    with pytest.raises(UserError, match=f"--plugin .*mine.py: {problem}") as error:
        plugins.load(write(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere.py", "", "text.txt"])
def test_a_file_that_can_not_be_read(tmp_path, name):
    (tmp_path / "text.txt").write_text("x = 1")
    with pytest.raises(UserError, match="--plugin"):
        plugins.load(str(tmp_path / name))


@pytest.mark.parametrize(
    "text, call, problem",
    [
        (LOSS + "return logprobs_K", "loss", "policy_loss: has to return a tensor"),
        (LOSS + "return logprobs_K[:1], {}", "loss", "policy_loss: has to return a tensor"),
        (
            LOSS + "return logprobs_K, {'mine': logprobs_K.sum()}",
            "loss",
            "policy_loss: .* mine; of",
        ),
        (LOSS + "return 1 / 0", "loss", r"policy_loss: ZeroDivisionError: .* \(line 2\)"),
        (LOSS + "while True: pass", "loss", "policy_loss: TimeoutError"),
        (
            "def designer_advantages(rewards_Q_M_N, valid_Q_M_N):\n    return rewards_Q_M_N",
            "advantages",
            r"designer_advantages: has to return a finite tensor of shape \(2, 2\)",
        ),
        (
            "def designer_advantages(rewards_Q_M_N, valid_Q_M_N):\n"
            "    return rewards_Q_M_N.mean(2) / 0",
            "advantages",
            "designer_advantages: has to return a finite tensor",
        ),
        ("def learning_rate(config, step): return 'high'", "rate", "learning_rate: .* not 'high'"),
        ("def designer_messages(question): return 'Go'", "prompt", "designer_messages: has to"),
        ("def f(split, seed, size): return [1]\nTASKS = {'mine': f}", "tasks", "TASKS.*Question"),
    ],
)
def test_a_wrong_function_is_one_line(tmp_path, monkeypatch, text, call, problem):
    monkeypatch.setattr(plugins, "SECONDS", 0.2)
    plugins.load(write(tmp_path, text))
    zeros = torch.zeros(3)
    calls = {
        "loss": lambda: credit.policy_loss(zeros, zeros, zeros, (0.2, 0.2), None, [3]),
        "advantages": lambda: credit.designer_advantages(REWARDS, VALID),
        "rate": lambda: Config().learning_rate(0),
        "prompt": lambda: designer.designer_messages(QUESTION),
        "tasks": lambda: tasks.load("mine", "train", 0, 5),
    }
    with pytest.raises(UserError, match=f"--plugin .*mine.py: {problem}"):
        calls[call]()


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    "body, problem",
    [
        ("raise ValueError('no')", r"reward: ValueError: no \(line 2\)"),
        ("return 'good'", "'good' is no finite number"),
        ("return float('nan')", "nan is no finite number"),
    ],
)
def test_a_reward_that_fails_is_infrastructure(policy, tmp_path, kind, body, problem):
    plugins.load(write(tmp_path, f"{kind} reward(question, answer):\n    {body}"))
    with pytest.raises(PluginError, match=problem):
        asyncio.run(tasks.reward(QUESTION, "42", None))
    engine = Scripted(policy, lambda _: "\\boxed{42}")
    (tree,) = grow(policy, engine, [QUESTION], 1, 1, fixed_design=designer.FIXED_DESIGNS["single"])
    assert tree.executions[0][0].status == "infra_error"


@pytest.mark.parametrize(
    "text",
    [
        "import time\ndef reward(question, answer): time.sleep(60)",
        "import asyncio\nasync def reward(question, answer): await asyncio.sleep(60)",
    ],
)
def test_a_reward_that_hangs_is_infrastructure(tmp_path, monkeypatch, text):
    monkeypatch.setattr(plugins, "SECONDS", 0.2)
    plugins.load(write(tmp_path, text))
    with pytest.raises(PluginError, match="took longer"):
        asyncio.run(tasks.reward(QUESTION, "42", None))


def test_a_tool_in_the_trainer(policy, tmp_path):
    text = 'async def shout(text):\n    "Shout."\n    return text.upper()\nTOOLS = {"shout": shout}'
    plugins.load(write(tmp_path, text))
    replies = iter(["```shout\nhello\n```", "done"])
    script = 'submit(Agent("a", "i", tools=["shout"])(question))'
    question = tasks.with_tools(QUESTION)
    execution, _ = execute(policy, script, Scripted(policy, lambda _: next(replies)), question)
    assert execution.calls[0].tool_output == "HELLO"
