"""The cold start: training questions only, deterministic, in the very format of the rollout."""

import json
import random
from dataclasses import replace

import pytest
from conftest import ROOT, Scripted, execute, grow
from transformers import AutoTokenizer

import sft
import tasks
from data_types import Budget, Design, Execution, Tree
from designer import FIXED_DESIGNS, ROLE
from lib.errors import EngineError, UserError
from lib.prefix_sharing import share_prefixes
from policy import Policy
from tiny import build
from tiny.arithmetic import teacher


def run(*arguments):
    sft.main([str(argument) for argument in arguments])


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_cold_start_asks_training_questions_only():
    rows = teacher.cold_start(3000)
    held_out = {q.prompt for q in tasks.load("arithmetic", "heldout", 0, 2000)}
    asked = set()
    for _, messages, _ in rows:
        asked |= {m["content"].split("\n")[0] for m in messages if m["role"] == "user"}
    assert not asked & held_out and rows == teacher.cold_start(3000)
    assert {role for role, _, _ in rows} == {"designer", "executor"}


def test_it_shows_every_design_and_errs_on_purpose():
    rows = teacher.cold_start(6000)
    designs = {completion for role, _, completion in rows if role == "designer"}
    assert designs == set(FIXED_DESIGNS.values())
    is_right = []
    for _, messages, completion in rows:
        if completion.startswith("```python"):
            expression = completion.removeprefix("```python\nprint(").removesuffix(")\n```")
            is_right.append(messages[-1]["content"] == f"What is {expression}?")
    assert 0.7 < sum(is_right) / len(is_right) < 0.9


def test_its_messages_are_those_of_the_rollout(policy):
    """The scripted teacher behind the real executor in the real sandbox has the same conversations
    as `play`."""
    question = tasks.load("arithmetic", "train", 0, 3)[0]
    for name in ("coder", "reflect", "debate", "relay"):
        calls = teacher.play(random.Random(0), question, FIXED_DESIGNS[name])
        replies = iter([text for _, text in calls])
        design = FIXED_DESIGNS[name]
        execution, _ = execute(policy, design, lambda prompt: next(replies), question)
        conversations = []
        for call in execution.calls:
            conversations.append(tuple((m["role"], m["content"]) for m in call.messages))
        assert conversations == [messages for messages, _ in calls], name


TRAINING = sft.Config(steps=8, batch=16, lr=1e-3)


def test_fine_tuning_learns_and_is_deterministic():
    rows = teacher.cold_start(64)
    losses = []
    for _ in range(2):
        policy = Policy(str(ROOT / "tiny"))
        losses.append(sft.fine_tune(policy, sft.encode(policy, rows, 512), TRAINING))
    assert losses[0] == losses[1] and all(loss > 0 for loss in losses[0])


def test_building_from_nothing_and_collecting(tmp_path):
    """The documented commands at a small size: build, collect, fine-tune on what was collected."""
    model, collected, tuned = tmp_path / "model", tmp_path / "kept.jsonl", tmp_path / "tuned"
    build.main(["--out", str(model), "--samples", "400", "--steps", "3", "--batch", "8"])
    assert Policy(str(model)).tokenizer.chat_template
    flags = ["--collect", "--teacher", "tiny", "--questions", 12, "--out", collected]
    run(*flags, "--design-tokens", 96, "--reply-tokens", 48)
    rows = read_rows(collected)
    columns = {"role", "messages", "completion", "question", "teacher"}
    assert rows and all(columns <= set(row) for row in rows)
    run("--model", "tiny", "--data", collected, "--out", tuned, "--steps", 2, "--batch", 4)
    assert Policy(str(tuned))


def test_the_tiny_folder_is_never_replaced_by_fine_tuning(tmp_path):
    """It holds code, too: only tiny/build.py writes into it, file by file."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "teacher.py").write_text("")
    with pytest.raises(UserError, match="nothing was touched"):
        run("--model", "tiny", "--out", tmp_path)
    assert (tmp_path / "teacher.py").exists()


def test_only_what_ended_right_is_kept(policy):
    def speak(prompt):
        return FIXED_DESIGNS["single"] if ROLE in prompt else r"\boxed{0}"

    question = tasks.load("registry", "train", 0, 3)[0]
    (tree,) = grow(policy, Scripted(policy, speak), [question], 1, 1)
    assert tree.executions[0][0].reward == 0.0
    assert sft.samples_to_keep(sft.Config(), tree) == []
    right = replace(tree.executions[0][0], reward=1.0)
    tree = replace(tree, executions=((right,),))
    kept = sft.samples_to_keep(sft.Config(), tree)
    assert [row["role"] for row in kept] == ["designer", "executor"]
    (call,) = right.calls
    assert not call.truncated
    cut_off = replace(right, calls=(replace(call, truncated=True),))
    tree = replace(tree, executions=((cut_off,),))
    assert [row["role"] for row in sft.samples_to_keep(sft.Config(), tree)] == ["designer"]


def test_an_execution_knows_which_reply_was_cut_off(policy):
    script = 'a = Agent("a", "i")\na("one")\nsubmit(a("two"))'
    budget = Budget(reply_tokens=8)
    replies = iter(["yes", "yes " * 20])
    execution, _ = execute(policy, script, lambda prompt: next(replies), budget=budget)
    assert [call.truncated for call in execution.calls] == [False, True]


def test_a_sample_ends_as_the_templates_turns_do(policy, monkeypatch):
    """A chat tune of a base model: its tokenizer names another end token."""
    rows = [("executor", [{"role": "user", "content": "hello"}], "hi")]
    end_id = policy.tokenizer.eos_token_id
    other = AutoTokenizer.from_pretrained(policy.path)
    other.eos_token = other.pad_token
    monkeypatch.setattr(policy, "tokenizer", other)
    assert other.eos_token_id != end_id
    (sample,) = sft.encode(policy, rows, 100)
    assert sample.completion_ids[-1] == end_id
    monkeypatch.setattr(policy.chat, "turn_end", lambda end_ids: None)
    (sample,) = sft.encode(policy, rows, 100)
    assert sample.completion_ids[-1] == policy.tokenizer.eos_token_id


COLLECT = ("--collect", "--teacher", "tiny", "--design-tokens", 96, "--reply-tokens", 48)


def test_a_stopped_collection_goes_on(tmp_path):
    """What was collected before is kept, a line that was being written is not; the end is as if it
    had never stopped."""
    complete, stopped = tmp_path / "complete.jsonl", tmp_path / "stopped.jsonl"
    flags = (*COLLECT, "--questions", 20, "--designs", 2)
    run(*flags, "--out", complete)
    rows = read_rows(complete)
    assert {row["teacher"] for row in rows} == {"tiny"}
    assert not (tmp_path / "complete.jsonl.progress").exists()

    names = list(dict.fromkeys(row["question"] for row in rows))
    done = names[: len(names) // 2]
    left = [row for row in rows if row["question"] in done]
    left += [row for row in rows if row["question"] == names[-1]][:1]  # of a question half done
    text = "".join(json.dumps(row) + "\n" for row in left)
    stopped.write_text(text + '{"role": "desi')
    settings = json.dumps(["registry", "tiny", 0])
    lines = [settings, *map(json.dumps, done)]
    (tmp_path / "stopped.jsonl.progress").write_text("\n".join(lines) + "\n" + '"half of a na')
    run(*flags, "--out", stopped)
    assert sorted(stopped.read_text().splitlines()) == sorted(complete.read_text().splitlines())
    with pytest.raises(UserError, match="not this collection"):
        run(*flags, "--out", stopped)


def test_equal_ids_are_not_one_question(tmp_path, monkeypatch):
    """Some files number their rows anew in every part."""
    questions = tasks.load("registry", "train", 0, 3)
    same_id = [replace(question, id="1") for question in questions]
    monkeypatch.setattr(tasks, "load", lambda *arguments: same_id)
    asked = []

    async def rollout(self, questions, **options):
        asked.extend(questions)
        if len(asked) == 2:
            raise KeyboardInterrupt
        right = Execution((), "4", "answered", reward=1.0)
        return [Tree(questions[0], (Design("s", text="s"),), ((right,),))]

    monkeypatch.setattr(sft.Rollout, "rollout", rollout)
    monkeypatch.setattr(sft, "PORTION", 1)
    out = tmp_path / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(*COLLECT, "--questions", 3, "--out", out)
    run(*COLLECT, "--questions", 3, "--out", out)
    assert [question.prompt for question in asked[2:]] == [q.prompt for q in questions[1:]]
    assert len(read_rows(out)) == 3


def test_a_collection_whose_teacher_fails_says_so_and_goes_on(tmp_path, monkeypatch):
    """The engine fails for some questions: the others are kept. The same command asks the failed
    questions again."""
    flags = (*COLLECT, "--questions", 6, "--out", tmp_path / "kept.jsonl", "--skip-check")
    bad = {question.prompt for question in tasks.load("registry", "train", 0, 6)[:2]}

    def speak(prompt):
        if any(text in prompt for text in bad):
            return EngineError("the server is gone")
        return "submit(Agent('a', 'Answer.')(question))"

    monkeypatch.setattr(
        "lib.model_check.open_engine", lambda kind, policy, **_: Scripted(policy, speak)
    )
    with pytest.raises(UserError, match="2 of 6 questions failed .the server is gone."):
        run(*flags)
    assert (tmp_path / "kept.jsonl.progress").exists()
    bad.clear()
    run(*flags)
    assert not (tmp_path / "kept.jsonl.progress").exists()


@pytest.mark.parametrize(
    "prompt, states",
    [
        ("What is 1 + 2?", True),
        ("(4 - 1)", True),
        ("In 20 minutes she reads (20 pages. How many?", False),
        ("Natalia sold 48 clips.", False),
        ("No number.", False),
        ("10 / 0", False),
        ("9**9**9**9", False),
    ],
)
def test_the_scripted_teacher_plays_what_states_its_answer(prompt, states):
    assert teacher.states_its_answer(tasks.Question("q", prompt, "3")) is states


def test_a_model_learns_from_the_scripted_teacher_on_other_sets(tmp_path):
    """Sets whose questions state an expression: only their training side, every role, and a folder
    that loads."""
    rows = teacher.cold_start(60, 0, "rg:chain_sum")
    assert {role for role, _, _ in rows} == {"designer", "executor"}
    assert any("```python\nprint(" in text for _, _, text in rows)
    asked = {messages[-1]["content"] for role, messages, _ in rows if role == "designer"}
    assert not any(tasks.held_out(prompt) for prompt in asked)
    flags = ("--model", ROOT / "tiny", "--scripted", "--tasks", "rg:chain_sum")
    run(*flags, "--samples", 40, "--steps", 3, "--batch", 8, "--out", tmp_path / "m")
    assert Policy(str(tmp_path / "m")).model is not None


def test_an_update_in_parts_is_the_update_in_one(policy):
    """More tokens than the budget: rows that share prefixes, in parts; the same loss."""
    samples = sft.encode(policy, teacher.cold_start(24), 2048)
    assert len(share_prefixes(samples, 300, 128)) > 1

    def loss(batch_tokens):
        config = replace(TRAINING, steps=1, batch_tokens=batch_tokens)
        return sft.fine_tune(Policy(str(ROOT / "tiny")), samples, config)[0]

    assert loss(300) == pytest.approx(loss(1 << 20), rel=1e-5)
