"""Evaluation: the table, the files, one question shown."""

import asyncio
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import pytest
from conftest import QUESTION, ROOT, SHARED, Scripted, grow, needs_shared

import eval as evaluation
import tasks
from benchmarks.code_grading import Suite
from data_types import Design, Execution, Tree
from executor import Runtime
from lib import statistics
from lib.errors import EngineError, SandboxError, UserError
from rollout import Rollout
from sandbox import Sandbox


def command(*arguments, cwd):
    process = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@needs_shared
def test_benchmarks_of_any_kind_in_one_table(tmp_path):
    """A path and reasoning-gym generators, all modes. A tiny model scores near 0 on them, and that
    is honest."""
    stdout = command(
        *("--model", "tiny", "--limit", 3, "--out", tmp_path),
        *("--tasks", f"{SHARED / 'data' / 'gsm8k_test.jsonl'},rg:gcd,leg_counting"),
        *("--design-tokens", 40, "--reply-tokens", 20, "--max-calls", 3),
        *("--modes", "single,self-consistency,metaagent"),
        cwd=tmp_path,
    )
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    modes = [row["mode"].split(" (")[0] for row in rows]
    assert modes == ["single", "self-consistency", "metaagent"] * 3
    assert all(len(row["correct"]) == 3 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert stdout.count("| ") > 20 and (tmp_path / "results.md").read_text().strip() in stdout


def test_ask_shows_the_run(tmp_path):
    stdout = command("--ask", "What is 37 * 52 + 418?", "--seed", 1, cwd=tmp_path)
    for text in ("question: What is 37 * 52 + 418?", "design 1", "outcome: ", "cost: "):
        assert text in stdout
    assert "─" not in stdout and "reward" not in stdout  # into a pipe, and without a gold answer


def test_interval_and_pass_at_k():
    low, high = statistics.interval95([0.0, 1.0] * 50)  # Wilson's
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = statistics.interval95([0.25, 0.75] * 50)  # the bootstrap's
    assert 0.44 <= low <= 0.46 and 0.54 <= high <= 0.56
    for samples in range(1, 6):
        for solved in range(samples + 1):
            for k in range(1, samples + 1):
                answers = [1] * solved + [0] * (samples - solved)
                draws = [max(draw) for draw in combinations(answers, k)]
                expected = sum(draws) / len(draws)
                assert statistics.pass_at_k(solved, samples, k) == pytest.approx(expected)


VOTE = 'team = [Agent(str(i), "x") for i in range(3)]\nsubmit(vote(team, question))'


def executions(*answers):
    return [Execution((), answer, "answered") for answer in answers]


def test_votes(policy):
    rollout = Rollout(Runtime(None, policy, sandbox=None))

    def majority(*answers):
        return asyncio.run(evaluation.majority(rollout, QUESTION, executions(*answers)))

    answers = (r"\boxed{1}", r"\boxed{2}", r"so \boxed{2}", None, "no box")
    assert majority(*answers) == r"\boxed{2}" and majority(None) is None


def test_equal_answers_outvote_in_designs_and_in_self_consistency(policy):
    """They are one answer, however they are written."""
    replies = [r"\boxed{7}", r"\boxed{0.5}", r"\boxed{\frac{1}{2}}"]
    rollout = Rollout(Runtime(None, policy, sandbox=None))
    vote = evaluation.majority(rollout, QUESTION, executions(*replies))
    assert asyncio.run(vote) == replies[1]
    speaking = iter(replies)
    engine = Scripted(policy, lambda prompt: next(speaking))
    (tree,) = grow(policy, engine, [QUESTION], 1, 1, fixed_design=VOTE)
    assert tree.executions[0][0].answer == replies[1]


def test_programs_vote_by_what_they_do(policy):
    """Two programs that are written differently and do the same outvote one; hidden tests take no
    part."""
    tests = Suite("stdin", (("1 2", "3"), ("4 5", "9")), (("7 1", "8"),))
    question = replace(QUESTION, kind="code", tests=tests)
    programs = (
        "print(0)",
        "print(sum(map(int, input().split())))",
        "a, b = map(int, input().split())\nprint(a + b)",
    )
    replies = [f"```solution\n{program}\n```" for program in programs]

    async def go():
        async with Sandbox() as sandbox:
            rollout = Rollout(Runtime(None, policy, sandbox))
            return await evaluation.majority(rollout, question, executions(*replies))

    assert asyncio.run(go()) == replies[1]
    speaking = iter(replies)
    engine = Scripted(policy, lambda prompt: next(speaking))
    (tree,) = grow(policy, engine, [question], 1, 1, fixed_design=VOTE)
    execution = tree.executions[0][0]
    assert execution.answer == replies[1] and execution.reward == 1.0


def one_call(policy, speak, questions):
    script = 'submit(Agent("a", "i")(question))'
    return grow(policy, Scripted(policy, speak), questions, 1, 1, fixed_design=script)


def test_a_program_is_solved_by_all_tests_or_not(policy):
    """Half of the tests: half a reward to learn from, no point in a table."""
    tests = Suite("stdin", (), (("1 2", "3"), ("4 5", "9")))
    question = replace(QUESTION, kind="code", tests=tests)
    (tree,) = one_call(policy, lambda prompt: "```solution\nprint(3)\n```", [question])
    assert tree.executions[0][0].reward == 0.5 and statistics.record(tree)["scores"] == [0.0]


def test_infrastructure_is_left_out_and_never_a_zero(policy):
    replies = iter([r"\boxed{42}", EngineError("down"), r"\boxed{42}"])
    trees = one_call(policy, lambda prompt: next(replies), [QUESTION] * 3)
    result = statistics.summarise("x", "single", [statistics.record(tree) for tree in trees])
    assert result.accuracy == 1.0 and len(result.correct) == 2 and result.infra_errors == 1
    assert sum(tree.executions[0][0].valid for tree in trees) == 2
    (tree,) = one_call(policy, lambda prompt: EngineError("down"), [QUESTION])
    with pytest.raises(SandboxError, match="down"):
        statistics.summarise("x", "single", [statistics.record(tree)])


def test_a_vote_that_can_not_be_graded_is_infrastructure(policy, monkeypatch):
    async def no_grader(*arguments):
        raise SandboxError("the grader is gone")

    monkeypatch.setattr(tasks, "reward", no_grader)
    rollout = Rollout(Runtime(None, policy, sandbox=None))
    tree = Tree(QUESTION, (Design("s"),), (executions(r"\boxed{42}", r"\boxed{42}"),))
    votes = asyncio.run(evaluation.record_votes(rollout, tree))
    assert votes["scores"] == [] and votes["infra_errors"] == 1
    assert votes["detail"] == "the grader is gone"


def test_intervals_hold_what_they_promise_near_the_ends():
    """The chance that Wilson's interval of 48 answers has the true share inside, summed exactly."""
    for share in (0.02, 0.5, 0.94):
        covered = 0.0
        for right in range(49):
            low, high = statistics.wilson95(right, 48)
            if low <= share <= high:
                covered += math.comb(48, right) * share**right * (1 - share) ** (48 - right)
        assert 0.92 < covered < 0.99


def test_what_the_model_reads_is_counted_and_new_designs_too(policy):
    """Every call from its beginning; of a server that has only messages nothing is said."""
    (tree,) = one_call(policy, lambda prompt: r"\boxed{42}", [QUESTION])
    (call,) = tree.executions[0][0].calls
    row = statistics.record(tree)
    assert row["prompt_tokens"] == [len(call.prompt_ids)]

    def result(shown=None, **changes):
        return statistics.summarise("x", "single", [row | changes], shown)

    assert math.isnan(result().new_designs) and result().prompt_tokens == len(call.prompt_ids)
    assert result(frozenset()).new_designs == 1.0
    assert result(frozenset(row["shapes"])).new_designs == 0.0
    messages = replace(call, prompt_ids=(("user", "What?"),))
    on_a_server = replace(tree.executions[0][0], calls=(messages,))
    assert statistics.prompt_tokens_of(tree.designs[0], on_a_server) is None
    assert math.isnan(result(prompt_tokens=[None]).prompt_tokens)


def test_votes_use_up_the_tokens_that_they_are_given(policy):
    """As many answers as --vote-tokens pays for, whatever a design of its own would cost, which
    nobody asks for."""
    engine = Scripted(policy, lambda prompt: r"\boxed{42}")
    reply_tokens = len(policy.tokenizer.encode(r"\boxed{42}")) + 1

    async def go():
        async with Sandbox() as sandbox:
            rollout = Rollout(Runtime(engine, policy, sandbox))
            modes = ["self-consistency"]
            return await evaluation.evaluate(
                rollout, "x", [QUESTION], modes, vote_tokens=4.2 * reply_tokens
            )

    (result,) = asyncio.run(go())
    assert result.mode == "self-consistency (k=4)" and result.accuracy == 1.0
    assert len(engine.prompts) == 1 + 4


def test_votes_may_have_the_tool(policy):
    """A voter that computes costs two calls, and a vote of it k times as much."""

    def speak(prompt):
        is_told = "Output: 42" in prompt
        return r"\boxed{42}" if is_told else "```python\nprint(6 * 7)\n```"

    async def go():
        async with Sandbox() as sandbox:
            rollout = Rollout(Runtime(Scripted(policy, speak), policy, sandbox))
            modes = ["self-consistency+python", "single"]
            return await evaluation.evaluate(rollout, "x", [QUESTION], modes, vote_tokens=150)

    vote, single = asyncio.run(go())
    k = int(vote.mode.removeprefix("self-consistency+python (k=").removesuffix(")"))
    assert vote.accuracy == 1.0 and single.accuracy == 0.0
    assert k > 1 and vote.calls == 2 * k


def test_an_answer_is_written_before_the_next_question_is_done(policy, tmp_path):
    """Stopped in the second question's last call: the first one's answer is in the file."""
    path = tmp_path / "answers.jsonl"

    class Stopping(Scripted):
        async def sample(self, prompt_ids, **options):
            if "Check" in self.policy.tokenizer.decode(prompt_ids):
                async with asyncio.timeout(20):
                    while not path.exists():
                        await asyncio.sleep(0.01)
                raise KeyError("stopped")
            return await super().sample(prompt_ids, **options)

    questions = [QUESTION, replace(QUESTION, id="r", prompt="A second question: what is 6 * 7?")]
    script = """
reply = Agent("a", "Answer.")(question)
if "second" in question:
    reply = Agent("b", "Check.")(reply)
submit(reply)
"""

    async def go():
        async with Sandbox() as sandbox:
            engine = Stopping(policy, lambda prompt: r"\boxed{42}")
            rollout = Rollout(Runtime(engine, policy, sandbox))
            answers = evaluation.Answers(path)
            subject = evaluation.Evaluation(rollout, "x", questions, 1, (0,), answers)
            await subject.answer("mine", script, progress=lambda count: None)

    with pytest.raises(KeyError, match="stopped"):
        asyncio.run(go())
    assert path.read_text().count("\n") == 1


def test_a_stopped_evaluation_goes_on(tmp_path):
    """Two of four questions, then four: the answers that were there are kept, and all numbers are
    those of one run, in any order."""
    rows = []
    for a in (17, 23, 31, 44):
        row = {"question": f"What is {a} * 13 + 100?", "answer": a * 13 + 100}
        rows.append(json.dumps(row))
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    flags = ["--tasks", tmp_path / "q.jsonl", "--modes", "single,metaagent", "--samples", 2]
    flags += ["--reply-tokens", 60, "--design-tokens", 60, "--max-calls", 4]
    flags += ["--dtype", "float64"]  # in which no sample hangs on the rounding of its batch
    command(*flags, "--limit", 2, "--out", tmp_path / "a", cwd=tmp_path)
    before = (tmp_path / "a" / "answers.jsonl").read_text()
    with open(tmp_path / "a" / "answers.jsonl", "a") as file:
        file.write('{"tasks": "cut off')
    command(*flags, "--out", tmp_path / "a", cwd=tmp_path)
    assert (tmp_path / "a" / "answers.jsonl").read_text().startswith(before)
    (tmp_path / "q.jsonl").write_text("\n".join(rows[::-1]))
    command(*flags, "--out", tmp_path / "b", cwd=tmp_path)

    def results(folder):
        rows = json.loads((tmp_path / folder / "results.json").read_text())["results"]
        for row in rows:
            row["correct"] = sorted(row["correct"])
            row["structures"] = sorted(row["structures"].items())
            row["interval"] = 0
        return rows

    assert results("a") == results("b") and len(before.splitlines()) == 4
    with pytest.raises(UserError, match="other settings"):
        evaluation.main([*map(str, flags), "--seed", "5", "--out", str(tmp_path / "a")])


def test_an_evaluation_goes_on_with_the_same_weights_only(tmp_path):
    """A checkpoint keeps its place while the model learns: answers of the older weights are not
    taken for the newer ones'. A folder from before a flag was there is gone on with."""
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights of step 1")
    config = evaluation.Config(model=str(model), designer=str(model))
    evaluation.open_folder(config, out)
    saved = json.loads((out / "config.json").read_text())
    older = {k: v for k, v in saved.items() if k not in ("vote_tokens", "weights")}
    older |= {"gpu_memory": 0.3, "flag_that_is_gone": 1}
    (out / "config.json").write_text(json.dumps(older))
    evaluation.open_folder(config, out)
    assert json.loads((out / "config.json").read_text()) == saved
    assert len(set(saved["weights"])) == 1
    (model / "model.safetensors").write_bytes(b"weights of step 2")
    with pytest.raises(UserError, match="other settings or weights"):
        evaluation.open_folder(config, out)
    (model / "model.safetensors").write_bytes(b"weights of step 1")
    evaluation.open_folder(replace(config, gpu_memory=0.5), out)
    with pytest.raises(UserError, match="other settings"):
        evaluation.open_folder(replace(config, vote_tokens=3.0), out)


def test_the_table_has_the_gain_over_the_single_agent():
    results = []
    for name, accuracies in (("aime24", (0.2, 0.3)), ("apps", (0.5, 0.4))):
        for mode, accuracy in zip(("single", "metaagent"), accuracies):
            result = statistics.Result(
                tasks=name,
                mode=mode,
                accuracy=accuracy,
                interval=(0.0, 1.0),
                pass_at_k=accuracy,
                calls=1.0,
                tokens=10.0,
                prompt_tokens=math.nan,
                valid_designs=1.0,
                new_designs=0.25,
                infra_errors=0,
                structures={"reflect": 3, "vote+python": 1},
                correct=(accuracy,),
            )
            results.append(result)
    lines = statistics.table(results).splitlines()
    assert lines[0] == "| accuracy, % | aime24 | apps | mean |"
    assert lines[3] == "| metaagent | 30.0 (+10.0) | 40.0 (-10.0) | 35.0 (+0.0) |"
    assert "0%, 25%, 75%, 0%, 0%" in lines[-1] and "| - | 100.0% | 25.0% |" in lines[-1]
