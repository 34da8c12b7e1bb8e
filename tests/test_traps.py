"""The 18 traps of the original implementation: one test each, in its order."""

import asyncio
import math

import pytest
import torch
from conftest import QUESTION, Scripted, execute, grow

import credit
import designer
import eval as evaluation
import mas
import tasks
from benchmarks.math_grading import grade_math
from data_types import Budget
from engines.hf import HFEngine
from executor import Executor, Runtime
from lib.answers import final_answer
from lib.errors import EngineError
from policy import CompletionLogprobs, collate
from rollout import Rollout, stack_rewards
from sandbox import Sandbox
from train import make_samples

ASK = 'a = Agent("a", "Solve the question.")\n'


def test_01_what_is_sampled_is_what_is_scored(policy):
    """Both roles at temperature 1; the sampler's log-probabilities are the trainer's own."""
    trees = grow(policy, HFEngine(policy), tasks.load("registry", "train", 0, 6), 2, 2)
    ones = torch.ones(6, 2, 2)
    batch = make_samples(trees, ones[..., 0], ones, {"designer", "executor"})
    assert {sample.role for sample in batch} == {"designer", "executor"}
    logprobs_K, _ = CompletionLogprobs(policy)(collate(batch, policy.pad_id))
    old_K = torch.tensor([p for sample in batch for p in sample.sampler_logprobs])
    assert (logprobs_K - old_K).abs().max() < 1e-4
    replies = set()
    for tree in trees:
        for _, execution in tree.pairs():
            replies |= {call.text for call in execution.calls}
    assert len(replies) > len(trees)  # exploration: not one greedy reply per question


def test_02_calls_are_recorded_by_the_parent(policy):
    """After a crash, an execution has the calls that were made for it, none of another run's."""
    first, _ = execute(policy, ASK + "a(question)\na(question)\n1 / 0", "one")
    second, _ = execute(policy, "1 / 0", "two")
    assert first.status == second.status == "crashed"
    assert [call.text for call in first.calls] == ["one", "one"] and second.calls == ()


def test_03_groups_do_not_mix_questions():
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])
    for advantages in (credit.designer_advantages, credit.executor_advantages):
        alone = torch.cat([advantages(rewards[:1]), advantages(rewards[1:])])
        assert torch.equal(advantages(rewards), alone)


def test_04_boxed_answers_are_not_deduplicated():
    text = r"\boxed{42}, then \boxed{17}, then \boxed{42}"
    assert final_answer(text) == "42"
    assert grade_math("42", text) == 1.0 and grade_math("17", text) == 0.0


@pytest.mark.parametrize(
    "review, solver_calls",
    [("INCORRECT", 2), ("NOT APPROVED", 2), ("DISAPPROVED", 2), ("Fine.\nAPPROVED.", 1)],
)
def test_05_a_critic_approves_only_with_the_whole_word(policy, review, solver_calls):
    script = 'submit(reflect(Agent("s", "Solve."), Agent("c", "Check."), question))'
    execution, _ = execute(
        policy, script, lambda prompt: review if "Check." in prompt else r"\boxed{42}"
    )
    assert [call.agent for call in execution.calls].count("s") == solver_calls


def test_06_no_reward_for_what_stands_in_a_prompt(policy):
    """The answer must be in what an agent said: not in the question, the instructions, or what the
    script prints."""
    question = tasks.Question("q", r"Is it \boxed{42}?", "42")
    script = r'print("\\boxed{42}")' + "\n" + r'submit(Agent("a", "Say \\boxed{42}.")(question))'
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: "I do not know."),
        [question],
        1,
        1,
        fixed_design=script,
    )
    execution = tree.executions[0][0]
    assert execution.status == "answered" and execution.reward == 0.0


@pytest.mark.parametrize(
    "gold, said", [("700", "703"), ("601", "603"), ("468", "470"), ("113", "113.5"), ("70", "70.3")]
)
def test_07_no_numeric_tolerance(gold, said):
    assert grade_math(gold, f"\\boxed{{{said}}}") == 0.0


def test_08_nothing_is_padded_into_a_group():
    """Entries that take no part shift neither mean nor std."""
    rewards = torch.tensor([[[1.0, 0.0, 0.0, 9.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    expected = credit.executor_advantages(rewards[..., :3])
    assert torch.equal(credit.executor_advantages(rewards, valid)[..., :3], expected)
    assert credit.executor_advantages(rewards, valid)[0, 0, 3] == 0.0


def test_09_a_spoiled_script_scores_zero_and_a_spoiled_engine_is_left_out(policy):
    slow = "while True: pass"
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: r"\boxed{42}"),
        [QUESTION],
        1,
        2,
        fixed_design=slow,
        budget=Budget(script_seconds=0.2),
    )
    rewards, valid = stack_rewards([tree])
    assert [run.status for run in tree.executions[0]] == ["timeout"] * 2
    assert valid.all() and not rewards.any()
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: EngineError("out of memory")),
        [QUESTION],
        1,
        1,
        fixed_design=ASK + "submit(a(question))",
    )
    assert tree.executions[0][0].status == "infra_error" and not stack_rewards([tree])[1].any()
    nothing = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    assert make_samples([tree], *nothing, {"executor", "designer"}) == []


def test_10_the_question_is_a_variable(policy):
    latex = "Let $f(x)=\\frac{1}{x}$, \"quoted\", ''', {braces} \\n and \\\\ and \t a tab."
    question = tasks.Question("q", latex, "42")
    execution, engine = execute(policy, ASK + "submit(a(question))", r"\boxed{42}", question)
    assert execution.status == "answered"
    assert execution.calls[0].prompt == latex and "frac{1}{x}" in engine.prompts[0]


@pytest.mark.parametrize(
    "script",
    [
        'submit("42")',
        r'submit("\\boxed{42}")',
        'submit(Reply("42", 0))',
        ASK + 'a(question)\nsubmit(Reply("42", 7))',
        'import mas\nmas._request({"op": "submit", "reply": "42"})',
        'import mas\nmas._request({"op": "submit", "text": "42"})',
        'import mas\nmas._request({"op": "submit", "reply": -1})',
        'import mas\nmas._request({"op": "submit", "reply": True})',
    ],
)
def test_11_a_script_submits_only_what_an_agent_said(policy, script):
    execution, _ = execute(policy, script, "no idea")
    assert execution.answer is None and execution.status in ("crashed", "invalid_script")


def test_11_a_reply_that_the_script_changed_is_submitted_as_it_was_said(policy):
    script = ASK + 'r = a(question)\nsubmit(Reply("\\\\boxed{42}", r.id, "42"))'
    assert execute(policy, script, "no idea")[0].answer == "no idea"


def test_12_a_script_has_no_environment_no_network_and_no_disk(policy, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "canary")
    (tmp_path / "secret").write_text("canary")
    code = f"""
import os, socket
print(os.environ)
attempts = [
    lambda: open({str(tmp_path / "secret")!r}).read(),
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: os.listdir("/proc"),
    socket.socket,
    os.fork,
    lambda: os.kill(os.getppid(), 9),
    lambda: os.posix_spawn("/bin/sh", ["sh"], {{}}),
]
for attempt in attempts:
    try:
        print("ESCAPE", attempt())
    except OSError as error:
        print(type(error).__name__)
"""

    async def go():
        async with Sandbox() as sandbox:
            return await sandbox.run(code)

    outcome = asyncio.run(go())
    assert "canary" not in outcome.stdout + outcome.stderr and not (tmp_path / "new").exists()
    assert "ESCAPE" not in outcome.stdout and outcome.stdout.count("Error\n") == 7, outcome


def test_13_a_prompt_that_is_too_long_is_an_outcome(policy):
    long = tasks.Question("q", "word " * 3000, "42")
    execution, engine = execute(policy, ASK + "submit(a(question))", HFEngine(policy), long)
    assert execution.status == "budget" and "context" in execution.detail and execution.calls == ()
    design = asyncio.run(designer.sample_design(HFEngine(policy), policy, long, ("seed",)))
    assert "context" in design.error


@pytest.mark.parametrize("spec", ["registry", "rg:gcd"])
def test_14_train_and_held_out_are_disjoint(spec):
    train, held_out = (
        {q.prompt for q in tasks.load(spec, split, 3, 200)} for split in ("train", "heldout")
    )
    other = {q.prompt for q in tasks.load(spec, "train", 4, 200)}
    assert train and held_out and not train & held_out and not other & held_out


def test_15_no_hint_about_the_answer_is_added(policy):
    question = tasks.Question("aime", "Find the remainder.", "025")
    system, user = designer.designer_messages(question)
    assert user["content"] == question.prompt
    execution, engine = execute(policy, ASK + "submit(a(question))", r"\boxed{25}", question)
    assert execution.calls[0].messages[-1]["content"] == question.prompt
    for text in (system["content"], execution.calls[0].messages[0]["content"]):
        assert "999" not in text and "integer" not in text and "025" not in text


def test_16_statistics_are_over_executions_not_calls(policy):
    """In mean and std of a group, an execution with ten calls counts as much as one with a single
    call, and all its calls share its advantage. (In the loss, a mean over tokens, it does weigh
    more.)"""
    script = ASK + 'r = a(question)\nwhile "more" in r: r = a(question)\nsubmit(r)'
    turns = iter(["more"] * 9 + [r"\boxed{0}"] + [r"\boxed{42}"] * 3)
    (tree,) = grow(
        policy,
        Scripted(policy, lambda prompt: next(turns)),
        [QUESTION],
        1,
        1,
        fixed_design=script,
        budget=Budget(),
    )
    others = grow(
        policy,
        Scripted(policy, lambda prompt: r"\boxed{42}"),
        [QUESTION],
        1,
        3,
        fixed_design=script,
    )[0]
    rewards = torch.cat([stack_rewards([tree])[0], stack_rewards([others])[0]], dim=2)
    assert rewards.tolist() == [[[0.0, 1.0, 1.0, 1.0]]] and len(tree.executions[0][0].calls) == 10
    advantages = credit.executor_advantages(rewards)
    assert advantages[0, 0, 0].item() == pytest.approx(-1.5, abs=1e-4)  # (0 - 3/4) / 0.5
    batch = make_samples([tree], torch.zeros(1, 1), advantages[:, :, :1], {"executor"})
    assert len(batch) == 10 and len({sample.advantage for sample in batch}) == 1


def test_17_everything_is_seeded(policy):
    questions = tasks.load("registry", "heldout", 0, 6)
    assert questions == tasks.load("registry", "heldout", 0, 6)
    one, two = (grow(policy, HFEngine(policy), questions, 2, 2) for _ in range(2))
    alone = grow(policy, HFEngine(policy), questions[:1], 2, 2)
    other = grow(policy, HFEngine(policy), questions, 2, 2, seed=("other",))

    def tokens(trees):
        ids = []
        for tree in trees:
            ids.append([design.completion_ids for design in tree.designs])
            for _, execution in tree.pairs():
                ids[-1] += [call.completion_ids for call in execution.calls]
        return ids

    assert tokens(one) == tokens(two) != tokens(other)
    assert tokens(alone) == tokens(one)[:1]  # a sample does not depend on its batch


def test_18_baselines_at_the_same_budget(policy):
    async def go():
        async with Sandbox() as sandbox:
            budget = Budget(calls=8, reply_tokens=48)
            rollout = Rollout(Runtime(HFEngine(policy), policy, sandbox, budget), design_tokens=96)
            questions = tasks.load("registry", "heldout", 0, 12)
            return await evaluation.evaluate(rollout, "registry", questions, evaluation.MODES)

    rows = {row.mode.split(" ")[0].rstrip(":"): row for row in asyncio.run(go())}
    assert set(rows) == set(evaluation.MODES)
    assert rows["single"].calls == 1.0
    ratio = rows["self-consistency"].tokens / rows["metaagent"].tokens
    assert 0.6 < ratio < 1.4, "the tokens that metaagent used, to the nearest whole sample"
    for row in rows.values():
        assert math.isfinite(row.tokens) and row.interval[0] <= row.accuracy <= row.interval[1]


def test_all_building_blocks_are_documented():
    text = designer.block_reference()
    assert all(name + "(" in text or name == "Reply" for name in mas.__all__)
    assert Executor.execute.__doc__
