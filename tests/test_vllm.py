"""vLLM in this process: its samples, its log-probabilities, its weights. In an environment of its own (the README has the command), on a CPU."""
import asyncio
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL_RUN, grow, lines, prompts

import tasks
from policy import EngineError, Policy, PromptTooLong
from scorer import Row, Sample, Scorer, collate

pytest.importorskip("vllm", reason="vLLM is not installed here")


@pytest.fixture(scope="module")
def engine(policy):
    from engines import VLLMEngine
    engine = VLLMEngine(policy)
    yield engine
    engine.close()


def gap(policy, prompt, completion) -> float:
    """The largest difference between the engine's log-probabilities of a completion and the trainer's."""
    sample = Sample(prompt, completion.ids, completion.logprobs, 1.0, "executor")
    with torch.no_grad():
        logprobs_K, _ = Scorer(policy)(collate([Row.of([sample])], policy.pad_id))
    return (logprobs_K - torch.tensor(completion.logprobs)).abs().max().item()


async def some(engine, policy, count=16, tokens=24, seeds=range(1000)):
    asked = [(prompt, seed) for prompt, seed in zip(prompts(policy, count), seeds)]
    return [prompt for prompt, _ in asked], await engine.gather(*(engine.sample(prompt, tokens, seed) for prompt, seed in asked))


def test_logprobs_are_the_trainers(policy, engine):
    asked, completions = asyncio.run(some(engine, policy))
    assert max(gap(policy, prompt, completion) for prompt, completion in zip(asked, completions)) < 1e-3
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs) <= 24 and completion.truncated == (completion.ids[-1] not in policy.end_ids)


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(policy, engine):
    async def go():
        prompt = prompts(policy, 1)[0]
        together = await engine.gather(*(engine.sample(prompt, 16, seed) for seed in range(12)))
        alone = [await engine.sample(prompt, 16, seed) for seed in reversed(range(12))]
        return together, alone[::-1]

    together, alone = asyncio.run(go())
    assert [c.ids for c in together] == [c.ids for c in alone] and len({c.ids for c in together}) > 1


def test_after_a_sync_it_is_the_new_model_and_not_the_old_one(policy, engine):
    """New weights are pushed: log-probabilities match them and not the old ones, also behind a prompt that was in the prefix cache."""
    new = Policy(str(ROOT / "tiny"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    async def go(weights):
        await engine.pause()
        engine.sync(weights.model.state_dict().items())
        return await some(engine, policy)

    asked, before = asyncio.run(some(engine, policy))
    _, after = asyncio.run(go(new))
    assert max(gap(new, *pair) for pair in zip(asked, after)) < 1e-3
    assert min(gap(policy, *pair) for pair in zip(asked, after)) > 1e-2
    _, again = asyncio.run(go(policy))
    assert [c.ids for c in again] == [c.ids for c in before]


def test_staggered_requests_with_cancellations_are_neither_lost_nor_swapped(policy, engine):
    """200 requests at random moments, a fourth of them cancelled at random: each ends with its own sample, or is cancelled."""
    rng, asked = random.Random(0), [prompts(policy, 20)[i % 20] for i in range(200)]

    async def one(i):
        await asyncio.sleep(rng.random())
        return await engine.sample(asked[i], 24, i)

    async def go():
        running = [asyncio.ensure_future(one(i)) for i in range(200)]
        for i in (victims := rng.sample(range(200), 50)):
            asyncio.get_running_loop().call_later(rng.random() * 1.2, running[i].cancel)
        ended = await asyncio.gather(*running, return_exceptions=True)
        await engine.pause()
        alone = {i: await engine.sample(asked[i], 24, i) for i in rng.sample(range(200), 25)}
        return victims, ended, alone

    victims, ended, alone = asyncio.run(asyncio.wait_for(go(), 120))
    cancelled = [i for i, result in enumerate(ended) if isinstance(result, asyncio.CancelledError)]
    assert set(cancelled) <= set(victims) and cancelled and not engine.waiting and not engine.inbox
    assert all(gap(policy, asked[i], ended[i]) < 1e-3 for i in set(range(200)) - set(cancelled))
    assert all(ended[i].ids == completion.ids for i, completion in alone.items() if i not in cancelled)
    assert not engine.engine.has_unfinished_requests()


def test_bad_requests_are_refused_and_the_others_go_on(policy, engine):
    async def go():
        with pytest.raises(PromptTooLong):
            await engine.sample((5,) * policy.max_length, 4, 0)
        results = await asyncio.gather(engine.sample((10 ** 6,), 4, 0), engine.sample((), 4, 0), some(engine, policy, 2), return_exceptions=True)
        return results

    outside, empty, (_, good) = asyncio.run(go())
    assert isinstance(outside, EngineError) and isinstance(empty, EngineError) and len(good) == 2


def test_the_tree_on_vllm(policy, engine):
    trees = grow(policy, engine, tasks.arithmetic("train", 0, 4), 4, 2)
    assert all(tree.valid_M_N.all() for tree in trees) and any(execution.calls for tree in trees for row in tree.executions for execution in row)
    assert max(gap(policy, call.prompt_ids, call) for tree in trees for row in tree.executions for e in row for call in map(as_completion, e.calls)) < 1e-3


def as_completion(call):
    """A Call with the names of a Completion."""
    from types import SimpleNamespace
    return SimpleNamespace(prompt_ids=call.prompt_ids, ids=call.completion_ids, completion_ids=call.completion_ids, logprobs=call.logprobs)


def test_an_engine_that_fails_tells_everybody_who_waits(policy, engine, monkeypatch):
    def fails():
        raise RuntimeError("device lost, on purpose")

    async def go():
        monkeypatch.setattr(engine.engine, "step", fails)
        waiting = await asyncio.gather(*(engine.sample(prompt, 8, 0) for prompt in prompts(policy, 5)), return_exceptions=True)
        later = await asyncio.gather(engine.sample((5, 6), 4, 0), return_exceptions=True)
        return waiting + later

    results = asyncio.run(asyncio.wait_for(go(), 30))
    assert len(results) == 6 and all(isinstance(result, EngineError) and "device lost" in str(result) for result in results)


def test_training_on_vllm(tmp_path):
    """Three steps of train.py --engine vllm: every step samples from the weights of the step before, so the gap stays at rounding."""
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *SMALL_RUN, "--steps", "3", "--engine", "vllm", "--stage", "both", "--no-eval-fixed", "--lr", "1e-3",
               "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = lines(out)
    trained = [row for row in rows if row["trained_tokens"]]  # a step of equal rewards alone teaches nothing
    assert len(rows) == 3 and all(row["infrastructure"] == 0 for row in rows) and len(trained) >= 2 and trained[-1]["step"] > 0
    assert all(0 < row["mismatch_max"] < 1e-3 and row["ratio"] == pytest.approx(1.0) for row in trained)  # --tis is on: trainer against itself
