"""Evaluation: the table, the files, one question shown."""
import asyncio
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import QUESTION, ROOT, SHARED, Scripted, grow, needs_shared

import eval as evaluation
import scores
from executor import Executor
from policy import EngineError
from programs import Suite
from sandbox import Sandbox
from tasks import BadInput


def command(*arguments, cwd):
    process = subprocess.run([sys.executable, str(ROOT / "eval.py"), *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout


@needs_shared
def test_benchmarks_of_any_kind_in_one_table(tmp_path):
    """A path and reasoning-gym generators, all modes. A tiny model scores near 0 on them, and that is honest."""
    said = command("--model", "tiny", "--tasks", f"{SHARED / 'data' / 'gsm8k_test.jsonl'},rg:gcd,leg_counting", "--limit", 3, "--design-tokens", 40,
                   "--reply-tokens", 20, "--max-calls", 3, "--modes", "single,self-consistency,metaagent", "--out", tmp_path, cwd=tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["mode"].split(" (")[0] for row in rows] == ["single", "self-consistency", "metaagent"] * 3
    assert all(len(row["correct"]) == 3 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert said.count("| ") > 20 and (tmp_path / "results.md").read_text().strip() in said


def test_ask_shows_the_run(tmp_path):
    said = command("--ask", "What is 37 * 52 + 418?", "--seed", 1, cwd=tmp_path)
    assert all(part in said for part in ("question: What is 37 * 52 + 418?", "design 1", "outcome: ", "cost: ")), said
    assert "─" not in said and "reward" not in said  # into a pipe, and without a gold answer


def test_interval_and_pass_at_k():
    low, high = scores.interval95([0.0, 1.0] * 50)
    assert 0.38 <= low <= 0.42 and 0.58 <= high <= 0.62
    from itertools import combinations
    for samples in range(1, 6):
        for solved in range(samples + 1):
            for k in range(1, samples + 1):
                draws = list(combinations([1] * solved + [0] * (samples - solved), k))
                assert scores.pass_at_k(solved, samples, k) == pytest.approx(sum(map(max, draws)) / len(draws))


class Run:
    def __init__(self, answer):
        self.answer = answer


def test_votes():
    math = asyncio.run(evaluation.vote(None, QUESTION, [Run(r"\boxed{1}"), Run(r"\boxed{2}"), Run(r"so \boxed{2}"), Run(None), Run("no box")]))
    assert math == r"\boxed{2}" and asyncio.run(evaluation.vote(None, QUESTION, [Run(None)])) is None


def test_programs_vote_by_what_they_do(policy):
    """Two programs that are written differently and do the same outvote one; hidden tests take no part."""
    question = replace(QUESTION, kind="code", tests=Suite("stdin", (("1 2", "3"), ("4 5", "9")), (("7 1", "8"),)))
    texts = [f"```solution\n{code}\n```" for code in ("print(0)", "print(sum(map(int, input().split())))", "a, b = map(int, input().split())\nprint(a + b)")]

    async def go():
        async with Sandbox() as sandbox:
            return await evaluation.vote(Executor(None, policy, sandbox), question, [Run(text) for text in texts])

    assert asyncio.run(go()) == texts[1]
    script = 'team = [Agent(str(i), "x") for i in range(3)]\nsubmit(vote(team, question))'
    said = iter(texts)
    tree, = grow(policy, Scripted(policy, lambda prompt: next(said)), [question], 1, 1, fixed=script)
    assert tree.executions[0][0].answer == texts[1] and tree.rewards_M_N.item() == 1.0


def one_call(policy, speak, questions):
    return grow(policy, Scripted(policy, speak), questions, 1, 1, fixed='submit(Agent("a", "i")(question))')


def test_a_program_is_solved_by_all_tests_or_not(policy):
    question = replace(QUESTION, kind="code", tests=Suite("stdin", (), (("1 2", "3"), ("4 5", "9"))))
    tree, = one_call(policy, lambda prompt: "```solution\nprint(3)\n```", [question])
    assert tree.rewards_M_N.item() == 0.5 and scores.record(tree)["scores"] == [0.0]  # half a reward to learn from, no point in a table


def test_infrastructure_is_left_out_and_never_a_zero(policy):
    said = iter([r"\boxed{42}", EngineError("down"), r"\boxed{42}"])
    trees = one_call(policy, lambda prompt: next(said), [QUESTION] * 3)
    row = scores.summarise("x", "single", [scores.record(tree) for tree in trees])
    assert row.accuracy == 1.0 and len(row.correct) == 2 and row.infrastructure == 1
    assert torch.stack([t.valid_M_N for t in trees]).sum() == 2
    with pytest.raises(evaluation.SandboxError, match="down"):
        scores.summarise("x", "single", [scores.record(tree) for tree in one_call(policy, lambda prompt: EngineError("down"), [QUESTION])])


def test_votes_use_up_the_tokens_that_they_are_given(policy):
    """As many answers as --vote-tokens pays for, whatever a design of its own would cost, which nobody asks for."""
    engine = Scripted(policy, lambda prompt: r"\boxed{42}")

    async def go():
        async with Sandbox() as sandbox:
            return await evaluation.evaluate(evaluation.Rollout(engine, policy, sandbox), "x", [QUESTION], ["self-consistency"],
                                             vote_tokens=4.2 * len(policy.tokenizer.encode(r"\boxed{42}") + [policy.tokenizer.eos_token_id]))

    row, = asyncio.run(go())
    assert row.mode == "self-consistency (k=4)" and row.accuracy == 1.0 and len(engine.prompts) == 1 + 4


def test_an_answer_is_written_before_the_next_question_is_done(policy, tmp_path):
    """Stopped in the second question's last call: the first one's answer is in the file."""
    path = tmp_path / "answers.jsonl"

    class Stopping(Scripted):
        async def sample(self, prompt_ids, *rest):
            if "Check" in self.policy.tokenizer.decode(prompt_ids):
                async with asyncio.timeout(20):
                    while not path.exists():
                        await asyncio.sleep(0.01)
                raise KeyError("stopped")
            return await super().sample(prompt_ids, *rest)

    questions = [QUESTION, replace(QUESTION, id="r", prompt="A second question: what is 6 * 7?")]
    script = 'reply = Agent("a", "Answer.")(question)\nif "second" in question:\n    reply = Agent("b", "Check.")(reply)\nsubmit(reply)'

    async def go():
        async with Sandbox() as sandbox:
            grow = evaluation.Rollout(Stopping(policy, lambda prompt: r"\boxed{42}"), policy, sandbox)
            await evaluation.answer(grow, "x", "mine", questions, 1, (0,), evaluation.Answers(path), script=script)

    with pytest.raises(KeyError, match="stopped"):
        asyncio.run(go())
    assert path.read_text().count("\n") == 1


def test_a_stopped_evaluation_goes_on(tmp_path):
    """Two of four questions, then four: the answers that were there are kept, and all numbers are those of one run, in any order."""
    rows = [json.dumps({"question": f"What is {a} * 13 + 100?", "answer": a * 13 + 100}) for a in (17, 23, 31, 44)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    flags = ["--tasks", tmp_path / "q.jsonl", "--modes", "single,metaagent", "--samples", 2, "--reply-tokens", 60, "--design-tokens", 60, "--max-calls", 4, "--dtype", "float64"]  # in which no sample hangs on the rounding of its batch
    command(*flags, "--limit", 2, "--out", tmp_path / "a", cwd=tmp_path)
    before = (tmp_path / "a" / "answers.jsonl").read_text()
    with open(tmp_path / "a" / "answers.jsonl", "a") as file:
        file.write('{"tasks": "cut off')
    command(*flags, "--out", tmp_path / "a", cwd=tmp_path)
    assert (tmp_path / "a" / "answers.jsonl").read_text().startswith(before)
    (tmp_path / "q.jsonl").write_text("\n".join(rows[::-1]))
    command(*flags, "--out", tmp_path / "b", cwd=tmp_path)

    def results(folder):
        return [{**row, "correct": sorted(row["correct"]), "structures": sorted(row["structures"].items()), "interval": 0}
                for row in json.loads((tmp_path / folder / "results.json").read_text())["results"]]

    assert results("a") == results("b") and len(before.splitlines()) == 4
    with pytest.raises(BadInput, match="other settings"):
        evaluation.main([*map(str, flags), "--seed", "5", "--out", str(tmp_path / "a")])


def test_an_evaluation_goes_on_with_the_same_weights_only(tmp_path):
    """A checkpoint keeps its place while the model learns: answers of the older weights are not taken for the newer ones'. A folder from before a flag was there is gone on with."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights of step 1")
    config = evaluation.Config(model=str(model), designer=str(model))
    evaluation.open_folder(config, out)
    saved = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({key: value for key, value in saved.items() if key not in ("vote_tokens", "weights")}))
    evaluation.open_folder(config, out)
    assert json.loads((out / "config.json").read_text()) == saved and len(set(saved["weights"])) == 1
    (model / "model.safetensors").write_bytes(b"weights of step 2")
    with pytest.raises(BadInput, match="other settings or weights"):
        evaluation.open_folder(config, out)
    (model / "model.safetensors").write_bytes(b"weights of step 1")
    evaluation.open_folder(config, out)
    with pytest.raises(BadInput, match="other settings"):
        evaluation.open_folder(replace(config, vote_tokens=3.0), out)


def test_the_table_has_the_gain_over_the_single_agent():
    rows = [scores.Result(name, mode, accuracy, (0.0, 1.0), accuracy, 1.0, 10.0, 1.0, 0, {"reflect": 3, "vote+python": 1}, (accuracy,))
            for name, values in (("aime24", (0.2, 0.3)), ("apps", (0.5, 0.4))) for mode, accuracy in zip(("single", "metaagent"), values)]
    lines = scores.table(rows).splitlines()
    assert lines[0] == "| accuracy, % | aime24 | apps | mean |" and lines[3] == "| metaagent | 30.0 (+10.0) | 40.0 (-10.0) | 35.0 (+0.0) |"
    assert "0%, 25%, 75%, 0%, 0%" in lines[-1]
