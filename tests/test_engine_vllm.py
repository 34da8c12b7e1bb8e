"""vLLM in this process: its samples, its log-probabilities, its weights. In an environment of its
own (docs/scale.md has the command), on a CPU."""

import asyncio
import random
import subprocess
import sys

import families
import pytest
import torch
from conftest import ROOT, SMALL_RUN, grow, lines, prompts
from test_replay import said, three_times

import tasks
from data_types import Sample
from lib.errors import EngineError, PromptTooLong
from policy import CompletionLogprobs, Policy, collate

pytest.importorskip("vllm", reason="vLLM is not installed here")


@pytest.fixture(scope="module")
def engine(policy):
    from engines.vllm import VLLMEngine

    engine = VLLMEngine(policy)
    yield engine
    engine.close()


def gap(policy, prompt, ids, logprobs) -> float:
    """The largest difference between the engine's log-probabilities and the trainer's."""
    sample = Sample(prompt, ids, logprobs, 1.0, "executor")
    with torch.no_grad():
        logprobs_K, _ = CompletionLogprobs(policy)(collate([sample], policy.pad_id))
    return (logprobs_K - torch.tensor(logprobs)).abs().max().item()


def gaps(policy, asked, completions) -> list[float]:
    return [gap(policy, prompt, c.ids, c.logprobs) for prompt, c in zip(asked, completions)]


async def sample_some(engine, policy, count=16, tokens=24):
    asked = prompts(policy, count)
    samples = [engine.sample(prompt, tokens, seed) for seed, prompt in enumerate(asked)]
    return asked, await asyncio.gather(*samples)


def test_logprobs_are_the_trainers(policy, engine):
    asked, completions = asyncio.run(sample_some(engine, policy))
    assert max(gaps(policy, asked, completions)) < 1e-3
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs) <= 24
        assert completion.truncated == (completion.ids[-1] not in policy.end_ids)


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(policy, engine):
    async def go():
        prompt = prompts(policy, 1)[0]
        together = await asyncio.gather(*(engine.sample(prompt, 16, seed) for seed in range(12)))
        alone = [await engine.sample(prompt, 16, seed) for seed in reversed(range(12))]
        return together, alone[::-1]

    together, alone = asyncio.run(go())
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert len({c.ids for c in together}) > 1


def test_after_an_update_it_is_the_new_model_and_not_the_old_one(policy, engine):
    """New weights are pushed: log-probabilities match them and not the old ones, also behind a
    prompt that was in the prefix cache."""
    new = Policy(str(ROOT / "tiny"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    async def go(weights):
        await engine.sleep()
        engine.update_weights(weights.model.state_dict().items())
        return await sample_some(engine, policy)

    asked, before = asyncio.run(sample_some(engine, policy))
    _, after = asyncio.run(go(new))
    assert max(gaps(new, asked, after)) < 1e-3
    assert min(gaps(policy, asked, after)) > 1e-2
    _, again = asyncio.run(go(policy))
    assert [c.ids for c in again] == [c.ids for c in before]


def test_staggered_requests_with_cancellations_are_neither_lost_nor_swapped(policy, engine):
    """200 requests at random moments, a fourth of them cancelled at random: each ends with its own
    sample, or is cancelled."""
    rng = random.Random(0)
    asked = prompts(policy, 20) * 10

    async def sample_later(i):
        await asyncio.sleep(rng.random())
        return await engine.sample(asked[i], 24, i)

    async def go():
        running = [asyncio.ensure_future(sample_later(i)) for i in range(200)]
        victims = rng.sample(range(200), 50)
        for i in victims:
            asyncio.get_running_loop().call_later(rng.random() * 1.2, running[i].cancel)
        ended = await asyncio.gather(*running, return_exceptions=True)
        await engine.sleep()
        alone = {i: await engine.sample(asked[i], 24, i) for i in rng.sample(range(200), 25)}
        return victims, ended, alone

    victims, ended, alone = asyncio.run(asyncio.wait_for(go(), 120))
    cancelled = [i for i, result in enumerate(ended) if isinstance(result, asyncio.CancelledError)]
    assert set(cancelled) <= set(victims) and cancelled and not engine.waiting and not engine.inbox
    finished = [i for i in range(200) if i not in cancelled]
    assert max(gaps(policy, [asked[i] for i in finished], [ended[i] for i in finished])) < 1e-3
    for i, completion in alone.items():
        assert i in cancelled or ended[i].ids == completion.ids
    assert not engine.engine.has_unfinished_requests()


def test_bad_requests_are_refused_and_the_others_go_on(policy, engine):
    async def go():
        with pytest.raises(PromptTooLong):
            await engine.sample((5,) * policy.max_length, 4, 0)
        results = await asyncio.gather(
            engine.sample((10**6,), 4, 0),
            engine.sample((), 4, 0),
            sample_some(engine, policy, 2),
            return_exceptions=True,
        )
        return results

    outside, empty, (_, good) = asyncio.run(go())
    assert isinstance(outside, EngineError) and isinstance(empty, EngineError) and len(good) == 2


def test_the_tree_on_vllm(policy, engine):
    trees = grow(policy, engine, tasks.load("registry", "train", 0, 4), 4, 2)
    executions = [execution for tree in trees for _, execution in tree.pairs()]
    calls = [call for execution in executions for call in execution.calls]
    assert all(execution.valid for execution in executions) and calls
    for call in calls:
        assert gap(policy, call.prompt_ids, call.completion_ids, call.logprobs) < 1e-3


def test_a_replay_says_the_same(policy, engine):
    """Token for token; sampled afresh, nearly always: sums are rounded by the batch."""
    first, afresh, again = three_times(policy, engine, 40)
    assert [said(execution) for execution in first] == [said(execution) for execution in again]
    assert sum(said(one) == said(other) for one, other in zip(first, afresh)) >= 38


def test_weights_that_vllm_does_not_take_break_the_engine_and_no_gather_is_left_out(
    policy, engine, monkeypatch
):
    gathered = []

    def weights(missing=()):
        for name, tensor in policy.model.state_dict().items():
            if name in missing:
                raise RuntimeError("no gather, on purpose")
            gathered.append(name)
            yield name, tensor

    call = engine.engine.collective_rpc

    def fails(method, *arguments, **options):
        if method != "reload_weights":
            return call(method, *arguments, **options)
        next(options["kwargs"]["weights_iterator"])
        raise RuntimeError("shapes differ, on purpose")

    monkeypatch.setattr(engine.engine, "collective_rpc", fails)
    for _ in range(2):  # also when it is broken already
        gathered.clear()
        engine.update_weights(weights())
        assert gathered == list(policy.model.state_dict())
        with pytest.raises(EngineError, match="shapes differ"):
            asyncio.run(engine.sample((5, 6), 4, 0))
    monkeypatch.undo()
    engine.broken = ""
    engine.update_weights(weights())
    asked, completions = asyncio.run(sample_some(engine, policy, 2))
    assert max(gaps(policy, asked, completions)) < 1e-3
    with pytest.raises(RuntimeError, match="no gather"):
        engine.update_weights(weights(missing=(gathered[2],)))
    engine.broken = ""  # though its weights are half of them old


def test_an_engine_that_fails_tells_everybody_who_waits(policy, engine, monkeypatch):
    def fails():
        raise RuntimeError("device lost, on purpose")

    async def go():
        monkeypatch.setattr(engine.engine, "step", fails)
        waiting = await asyncio.gather(
            *(engine.sample(prompt, 8, 0) for prompt in prompts(policy, 5)), return_exceptions=True
        )
        later = await asyncio.gather(engine.sample((5, 6), 4, 0), return_exceptions=True)
        return waiting + later

    results = asyncio.run(asyncio.wait_for(go(), 30))
    assert len(results) == 6
    for result in results:
        assert isinstance(result, EngineError) and "device lost" in str(result)


def test_training_on_vllm(tmp_path):
    """Three steps of train.py --engine vllm: every step samples from the weights of the step
    before, so the gap stays at rounding."""
    out = tmp_path / "run"
    flags = ["--steps", "3", "--engine", "vllm", "--stage", "both", "--lr", "1e-3"]
    command = [sys.executable, str(ROOT / "train.py"), *SMALL_RUN, *flags, "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = lines(out)
    # A step of equal rewards alone teaches nothing.
    trained = [row for row in rows if row["trained_tokens"]]
    assert len(rows) == 3 and all(row["infra_errors"] == 0 for row in rows)
    assert len(trained) >= 2 and trained[-1]["step"] > 0
    for row in trained:
        # --tis is on: the ratio is of the trainer to itself.
        assert 0 < row["mismatch_max"] < 1e-3 and row["ratio"] == pytest.approx(1.0)


def test_two_ranks_of_vllm_with_and_without_shard(tmp_path):
    """The same rollouts, so the same updates: gradient norms are equal but for rounding."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    norms = []
    for how in ([], ["--shard"]):
        out = tmp_path / f"run{len(norms)}"
        flags = ["--steps", "2", "--engine", "vllm", "--stage", "both", "--eval-every", "0"]
        flags += ["--eval-size", "1", "--skip-check", "--out", str(out), *how]
        command = [sys.executable, *torchrun, str(ROOT / "train.py"), *SMALL_RUN, *flags]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stdout + process.stderr
        norms.append([row["grad_norm"] for row in lines(out)])
    assert max(norms[0]) > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_lora_adapter_on_vllm(tmp_path):
    """Engine and trainer agree. And an evaluation takes the adapter's folder: the engine starts
    from the model that it belongs to, and takes the merged weights, as after --resume."""
    out = tmp_path / "run"
    flags = ["--engine", "vllm", "--stage", "both", "--lora", "4", "--lr", "1e-2"]
    command = [sys.executable, str(ROOT / "train.py"), "--steps", "3", *SMALL_RUN, *flags]
    process = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = [row for row in lines(out) if row["trained_tokens"]]
    assert len(rows) >= 2 and all(0 < row["mismatch_max"] < 1e-3 for row in rows)
    # It compares the engine's log-probabilities with the merged model's, and refuses others.
    flags = ["--model", out / "checkpoint", "--engine", "vllm", "--limit", "4", "--out", tmp_path]
    command = [sys.executable, ROOT / "eval.py", *flags, "--modes", "single"]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("family, agrees", [("Gemma 2", True), ("gpt-oss", False)])
def test_a_family_whose_weights_it_can_not_take_is_refused(family, agrees, tmp_path):
    """Gemma's tied head has no name of its own in vLLM. gpt-oss's experts stay as they were, on a
    CPU, without a word."""
    families.make(family, tmp_path, head_dim=32)  # vLLM has no smaller ones on a CPU
    command = [sys.executable, "train.py", "--engine", "vllm", "--gpu-memory", "0.35"]
    command += ["--model", str(tmp_path), *SMALL_RUN, "--steps", "1", "--max-length", "1024"]
    process = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True
    )
    if agrees:
        assert process.returncode == 0, process.stderr[-500:]
    else:
        assert process.returncode == 2, process.stderr[-500:]
        assert "new weights don't get to the engine" in process.stderr
