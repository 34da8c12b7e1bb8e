"""The cold start: from training questions only, deterministic, in the very format of the rollout."""
import json

import pytest
from conftest import ROOT, Scripted, execute, grow

import designer
import sft
import teacher
import tasks
from policy import EngineError, HFEngine, Policy


def test_the_cold_start_asks_training_questions_only():
    rows = teacher.cold_start(3000)
    held_out = {q.prompt for q in tasks.load("arithmetic", "heldout", 0, 2000)}
    asked = {message["content"].split("\n")[0] for _, messages, _ in rows for message in messages if message["role"] == "user"}
    assert not asked & held_out and rows == teacher.cold_start(3000)
    assert {role for role, _, _ in rows} == {"designer", "executor"}


def test_it_shows_every_design_and_errs_on_purpose():
    rows = teacher.cold_start(6000)
    assert {completion for role, _, completion in rows if role == "designer"} == set(designer.FIXED.values())
    coded = [(messages, completion) for role, messages, completion in rows if completion.startswith("```python")]
    right = [messages[-1]["content"] == f"What is {completion[16:-5]}?" for messages, completion in coded]
    assert 0.7 < sum(right) / len(right) < 0.9


def test_its_messages_are_those_of_the_rollout(policy):
    """The scripted teacher behind the real executor in the real sandbox gives the same conversations as `play`."""
    question = tasks.load("arithmetic", "train", 0, 3)[0]
    for name in ("coder", "reflect", "debate", "relay"):
        recorded = []
        import random
        teacher.play(random.Random(0), question, designer.FIXED[name], lambda messages, text: recorded.append((messages, text)))
        texts = iter([text for _, text in recorded])
        execution, _ = execute(policy, designer.FIXED[name], lambda prompt: next(texts), question)
        assert [list(call.messages) for call in execution.calls] == [messages for messages, _ in recorded], name


def test_fine_tuning_learns_and_is_deterministic(tmp_path):
    rows = teacher.cold_start(64)
    found = []
    for _ in range(2):
        policy = Policy(str(ROOT / "tiny"))
        losses = sft.fine_tune(policy, sft.encode(policy, rows, 512), steps=8, batch=16, lr=1e-3, seed=0)
        found.append(losses)
    assert found[0] == found[1] and all(loss > 0 for loss in found[0])


def test_building_from_nothing_and_collecting(tmp_path):
    """The documented commands at a small size: build, collect, fine-tune on what was collected."""
    sft.main(["--out", str(tmp_path / "model"), "--samples", "400", "--steps", "3", "--batch", "8"])
    assert Policy(str(tmp_path / "model")).tokenizer.chat_template
    sft.main(["--collect", "--tasks", "arithmetic", "--teacher", "tiny", "--questions", "12", "--design-tokens", "96", "--reply-tokens", "48",
              "--out", str(tmp_path / "kept.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert rows and all({"role", "messages", "completion", "question", "teacher"} <= set(row) for row in rows)
    sft.main(["--model", "tiny", "--data", str(tmp_path / "kept.jsonl"), "--out", str(tmp_path / "tuned"), "--steps", "2", "--batch", "4"])
    assert Policy(str(tmp_path / "tuned"))


def test_only_what_ended_right_is_kept(policy):
    engine = Scripted(policy, lambda prompt: designer.FIXED["single"] if designer.ROLE in prompt else r"\boxed{0}")
    question = tasks.load("arithmetic", "train", 0, 3)[0]
    tree, = grow(policy, engine, [question], 1, 1)
    assert tree.rewards_M_N.item() == 0.0 and isinstance(HFEngine(policy).live, int)


def test_a_stopped_collection_goes_on(tmp_path):
    """What was collected before is kept, a line that was being written is not; the end is as if it had never stopped."""
    flags = ["--collect", "--tasks", "arithmetic", "--teacher", "tiny", "--questions", "20", "--designs", "2", "--design-tokens", "96", "--reply-tokens", "48"]
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    sft.main([*flags, "--out", str(whole)])
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert {row["teacher"] for row in rows} == {"tiny"} and not (tmp_path / "whole.jsonl.progress").exists()
    names = list(dict.fromkeys(row["question"] for row in rows))
    early = [row for row in rows if row["question"] in names[:len(names) // 2]]
    part.write_text("".join(json.dumps(row) + "\n" for row in early + [row for row in rows if row["question"] == names[-1]][:1]) + '{"role": "desi')
    (tmp_path / "part.jsonl.progress").write_text("\n".join([json.dumps(["arithmetic", "tiny", "default", 0]), *names[:len(names) // 2]]) + "\n")
    sft.main([*flags, "--out", str(part)])
    assert sorted(part.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    with pytest.raises(tasks.BadInput, match="not this collection"):
        sft.main([*flags, "--out", str(part)])


def test_a_collection_whose_teacher_fails_says_so_and_goes_on(tmp_path, monkeypatch):
    """The engine fails for some questions: exit 2, the others are kept; the same command asks them again."""
    flags = ["--collect", "--tasks", "arithmetic", "--teacher", "tiny", "--questions", "6", "--out", str(tmp_path / "kept.jsonl")]
    bad = {question.prompt for question in tasks.load("arithmetic", "train", 0, 6)[:2]}

    def speak(prompt):
        return EngineError("the server is gone") if any(text in prompt for text in bad) else "submit(Agent('a', 'Answer.')(question))"

    monkeypatch.setattr(sft, "open_engine", lambda name, policy, memory: Scripted(policy, speak))
    with pytest.raises(tasks.BadInput, match="2 of 6 questions failed .the server is gone."):
        sft.main(flags)
    assert (tmp_path / "kept.jsonl.progress").exists()
    bad.clear()
    sft.main(flags)
    assert not (tmp_path / "kept.jsonl.progress").exists()


def test_the_scripted_teacher_plays_what_states_its_answer():
    def states(prompt, answer="3"):
        return teacher._states_its_answer(tasks.Question("q", prompt, answer))

    assert states("What is 1 + 2?") and states("(4 - 1)", "3")
    assert not any(map(states, ("In 20 minutes she reads (20 pages. How many?", "Natalia sold 48 clips.", "No number.", "10 / 0", "9**9**9**9")))


def test_a_model_learns_from_the_scripted_teacher_on_other_sets(tmp_path):
    """Sets whose questions state an expression: only their training side, every role, and a folder that loads."""
    rows = teacher.cold_start(60, 0, "rg:chain_sum")
    assert {role for role, _, _ in rows} == {"designer", "executor"} and any("```python\nprint(" in text for _, _, text in rows)
    asked = {messages[-1]["content"] for role, messages, _ in rows if role == "designer"}
    assert not any(tasks.held_out(prompt) for prompt in asked)
    sft.main(["--model", str(ROOT / "tiny"), "--scripted", "--tasks", "rg:chain_sum", "--samples", "40", "--steps", "3", "--batch", "8",
              "--out", str(tmp_path / "m")])
    assert Policy(str(tmp_path / "m")).model is not None


def test_an_update_in_parts_is_the_update_in_one(policy):
    """More tokens than the budget: rows that share beginnings, in parts; the same loss."""
    samples = sft.encode(policy, teacher.cold_start(24), 2048)

    def once(budget):
        return sft.fine_tune(Policy(str(ROOT / "tiny")), samples, 1, 16, 1e-3, 0, budget=budget)[0]

    assert len(sft.packed(policy, samples, 300)) > 1 == len(sft.packed(policy, samples, 1 << 20))
    assert once(300) == pytest.approx(once(1 << 20), rel=1e-5)
