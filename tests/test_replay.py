"""Replays: the same run again, with one reply drawn anew; each call's credit; agents left out."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from conftest import QUESTION, Scripted, grow, lines, with_rollout
from runs import train_run

from data_types import Call, Completion, Design, Execution, Tree, seed_of
from engines.hf import HFEngine
from lib.errors import EngineError
from lib.minibatches import make_samples
from lib.replay import (
    Replay,
    ReplayEngine,
    call_advantages,
    call_differences,
    replay,
    replay_calls,
    without_agents,
)
from tiny import registry

# Steps of random scripts; x is the last reply. They vote, loop, remember, use the tool.
SETUP = """\
import itertools
r = {n: Agent(n, n.capitalize() + "ern register.") for n in ("north", "east", "south", "west")}
old = Agent("north", "Northern register.", memory=True)
coder = Agent("coder", "Compute.", tools=["python"])
x = r["north"](question)
"""
STEPS = (
    'x = {a}("boss of Feki")',
    'x = {a}("friend of " + x)',
    'x = vote([{a}] * 3, "code of " + x)',
    'x = coder(x + " minus 27")',
    'x = old("code of " + x)',
    'x = ask_all([old, old], ["friend of " + x, "boss of Feki"])[0]',
    'x = ask_all([{a}, {b}], ["friend of Feki", "boss of " + x])[1]',
    'x = reflect({a}, {b}, "code of " + x)',
    'x = debate([{a}, {b}], "friend of " + x)',
    'x = route({a}, [{a}, {b}], "boss of " + x)',
    'for i in range(3):\n    x = {a}("who has 37")\n    if "a" in x:\n        break',
)


def random_script(seed: int) -> str:
    rng = random.Random(seed)
    steps = []
    for step in rng.choices(STEPS, k=rng.randint(1, 4)):
        a, b = (f'r["{rng.choice(registry.REGIONS)}"]' for _ in range(2))
        steps.append(step.format(a=a, b=b))
    return "\n".join([SETUP + "\n".join(steps), "submit(x)"])


def said(execution: Execution) -> tuple:
    calls = [(c.number, c.turn, c.prompt_ids, c.completion_ids) for c in execution.calls]
    return execution.status, execution.answer, calls


class Silent:
    """An engine that must not be asked."""

    async def sample(self, *arguments, **options):
        raise AssertionError("the engine was asked")


def three_times(policy, engine, count: int) -> list[list[Execution]]:
    """Executions of random scripts: once, afresh, and as replays whose engine must not be asked."""

    async def work(rollout):
        places = []
        for i in range(count):
            question = replace(QUESTION, id=str(i))
            places.append((Design(random_script(i)), question, ("run", 0, question.id, 0, 0)))
        first = await asyncio.gather(*(rollout.rollout_execution(*place) for place in places))
        afresh = await asyncio.gather(*(rollout.rollout_execution(*place) for place in places))
        rollout.runtime = replace(rollout.runtime, engine=Silent())
        replays = []
        for (design, question, seed), execution in zip(places, first):
            replays.append(replay(rollout, question, design, execution, seed))
        return first, afresh, await asyncio.gather(*replays)

    return with_rollout(policy, engine, work)


def test_two_hundred_random_scripts_again_token_for_token(policy):
    """With the replies known the engine is not asked; without them it says the same again."""
    first, afresh, again = three_times(policy, HFEngine(policy), 200)
    assert [said(execution) for execution in first] == [said(execution) for execution in afresh]
    assert [said(execution) for execution in first] == [said(execution) for execution in again]
    statuses = [execution.status for execution in first]
    assert statuses.count("answered") > 150 and len({len(e.calls) for e in first}) > 5


NINE = Completion((9,), (-0.5,), "9")
CHAIN = """\
a, b, c = Agent("a", "one"), Agent("b", "two"), Agent("c", "three")
x, y = ask_all([a, b], question)
submit(c(x + " and " + y))
"""


def test_only_what_depends_on_the_reply_is_sampled_anew(policy):
    answers = iter(["1", "2", r"\boxed{3}", r"\boxed{42}"])
    engine = Scripted(policy, lambda prompt: next(answers))
    seed = ("run", 0, QUESTION.id, 0, 0)

    async def work(rollout):
        design = Design(CHAIN)
        execution = await rollout.rollout_execution(design, QUESTION, seed)
        other = await replay(rollout, QUESTION, design, execution, seed, {1: NINE})
        return execution, other

    execution, other = with_rollout(policy, engine, work)
    assert [call.text for call in execution.calls] == ["1", "2", r"\boxed{3}"]
    assert [call.text for call in other.calls] == ["1", "9", r"\boxed{42}"]
    assert (execution.reward, other.reward) == (0.0, 1.0)
    assert len(engine.prompts) == 4  # three, and the one that reads another reply
    assert Replay(1, other, 1.0).said(execution) == "9"


def test_another_seed_for_one_call_alone(policy):
    """The model itself: the call before it is as it was, those of other seeds are asked again only
    where their prompts have changed."""
    script = SETUP + 'x = r["east"]("who has 37")\nx = r["west"]("code of " + x)\nsubmit(x)'
    (tree,) = grow(policy, HFEngine(policy), [QUESTION], 1, 1, ("t",), script)
    execution = tree.executions[0][0]

    async def work(rollout):
        others = await replay_calls([tree], rollout, ("t",), count=30)
        return others[0, 0, 0]

    others = with_rollout(policy, HFEngine(policy), work)
    assert sorted({other.call for other in others}) == [0, 1, 2] and len(others) == 30
    changed = 0
    for other in others:
        before = [call.text for call in execution.calls[: other.call]]
        assert [call.text for call in other.execution.calls[: other.call]] == before
        changed += other.said(execution) != execution.calls[other.call].text
    assert changed > 3


def tree_of(*executions_of_designs) -> Tree:
    designs = tuple(Design("s") for _ in executions_of_designs)
    return Tree(QUESTION, designs, tuple(map(tuple, executions_of_designs)))


def run_of(reward: float, num_calls: int) -> Execution:
    calls = [Call("a", (1,), (2,), (0.0,), "x", number=i) for i in range(num_calls)]
    return Execution(tuple(calls), "x", "answered", reward=reward)


def again(call: int, reward: float) -> Replay:
    return Replay(call, run_of(reward, 2), reward)


def test_credit_by_hand():
    assert call_differences(1.0, [again(0, 1.0), again(1, 0.0), again(1, 0.5)]) == {0: 0.0, 1: 0.75}

    # Differences 0, 1 of a right execution and -1 of a wrong one: mean 0, std 1 (ddof 1).
    tree = tree_of([run_of(1.0, 2), run_of(0.0, 2)])
    replays = {(0, 0, 0): [again(0, 1.0), again(1, 0.0)], (0, 0, 1): [again(1, 1.0)]}
    advantages = call_advantages([tree], replays)
    expected = {(0, 0, 0, 0): 0.0, (0, 0, 0, 1): 1.0, (0, 0, 1, 1): -1.0}
    assert {place: value.item() for place, value in advantages.items()} == pytest.approx(
        expected, abs=1e-5
    )
    # A call without a replay keeps its execution's advantage.
    samples = make_samples(
        [tree], torch.zeros(1, 1), torch.tensor([[[0.7, -0.7]]]), {"executor"}, replays=replays
    )
    assert [s.advantage for s in samples] == pytest.approx([0.0, 1.0, -0.7, -1.0], abs=1e-5)


def test_groups_are_questions_and_equals_teach_nothing():
    trees = [tree_of([run_of(1.0, 1)]), tree_of([run_of(1.0, 1), run_of(1.0, 1)])]
    replays = {
        (0, 0, 0): [again(0, 0.0)],  # alone in its group
        (1, 0, 0): [again(0, 0.0)],
        (1, 0, 1): [again(0, 0.0)],
    }
    assert all(value == 0.0 for value in call_advantages(trees, replays).values())


def test_what_the_infrastructure_spoils_is_left_out(policy):
    tree = tree_of([run_of(1.0, 1)])
    tree = replace(tree, designs=(Design('submit(Agent("a", "b")(question))'),))
    engine = Scripted(policy, lambda prompt: EngineError("gone"))
    found = with_rollout(policy, engine, lambda r: replay_calls([tree], r, ("t",)))
    assert found == {(0, 0, 0): []} and call_advantages([tree], found) == {}


def test_a_prompt_that_changed_is_asked():
    execution = run_of(1.0, 1)
    engine = ReplayEngine(Silent(), execution, ("t",))
    completion = asyncio.run(engine.sample((1,), 5, seed_of("t", 0, 0)))
    assert completion.text == "x"
    for prompt_ids, seed in (((1, 1), seed_of("t", 0, 0)), ((1,), seed_of("t", 1, 0))):
        with pytest.raises(AssertionError):
            asyncio.run(engine.sample(prompt_ids, 5, seed))


def test_an_agent_that_does_not_earn_its_place(policy):
    """The critic changes nothing, the solver all."""
    script = 'submit(Agent("s", "go")(Agent("critic", "look")(question)))'
    engine = Scripted(policy, lambda prompt: r"\boxed{42}" if "go" in prompt else "hm 6 * 7")

    async def work(rollout):
        trees = await rollout.rollout([QUESTION], 1, 2, ("t",), fixed_design=script)
        return await without_agents(trees[0], rollout, ("t",))

    assert with_rollout(policy, engine, work) == [{"critic": 1.0, "s": 0.0}]


def test_training_by_replay(tmp_path):
    """More tokens in a step, another gradient, and credits in the episode."""
    for name, flags in (("whole", ()), ("each", ("--executor-credit", "replay"))):
        train_run("--out", tmp_path / name, "--steps", 1, *flags)
    (whole,), (each,) = lines(tmp_path / "whole"), lines(tmp_path / "each")
    assert each["reward"] == whole["reward"] and each["tokens"] > whole["tokens"]
    assert each["grad_norm"] != whole["grad_norm"]
    text = (tmp_path / "each" / "episodes.jsonl").read_text()
    assert '"credit": ' in text and '"replays": ' in text
    assert '"credit": ' not in (tmp_path / "whole" / "episodes.jsonl").read_text()
