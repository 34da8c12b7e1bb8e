"""Sampling and scoring: the same numbers whatever the batch, the padding, the chunks."""
import asyncio
import copy

import pytest
import torch
from conftest import ROOT

import tasks
from policy import EngineError, HFEngine, Policy, PromptTooLong, Request, Row, Sample, Scorer, collate, decode, micro_batches, pick, share_prompts


def generate(policy, requests):
    """The completions of a batch, in its order."""
    found = dict(pair for finished in decode(policy, requests) for pair in finished)
    return [found[row] for row in range(len(requests))]


def prompts(policy, count):
    return [policy.render([{"role": "user", "content": q.prompt}]) for q in tasks.arithmetic("train", 0, count)]


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(policy):
    requests = [Request(prompt, 12 + i % 5, 1.0, i) for i, prompt in enumerate(prompts(policy, 24))]
    together = generate(policy, requests)
    assert [c.ids for c in together] == [generate(policy, [request])[0].ids for request in requests]
    same, other = generate(policy, [requests[0], Request(requests[0].prompt_ids, 12, 1.0, 99)])
    assert same.ids == together[0].ids != other.ids


def test_logprobs_are_those_of_the_model(policy):
    for completion, request in ((c, r) for r in [Request(p, 16, 1.0, i) for i, p in enumerate(prompts(policy, 6))] for c in generate(policy, [r])):
        logits = policy.model(torch.tensor([request.prompt_ids + completion.ids])).logits[0]
        expected = logits.log_softmax(-1)[len(request.prompt_ids) - 1:-1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
        assert len(completion.ids) == len(completion.logprobs) <= 16
        assert completion.truncated == (completion.ids[-1] not in policy.end_ids)


def test_pick_samples_the_distribution():
    """Inverse CDF: the token whose stretch of [0, 1) holds the number. Probabilities 1/2, 1/4, 1/4."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(5, 1)
    token, logprob = pick(logits, torch.ones(5), torch.tensor([0.0, 0.49, 0.51, 0.76, 0.999999]))
    assert token.tolist() == [0, 0, 1, 2, 2]
    assert torch.allclose(logprob.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))
    hot, _ = pick(logits, torch.tensor([0.0] * 5), torch.rand(5))
    assert hot.tolist() == [0] * 5  # temperature 0: the most likely
    _, logprob = pick(logits[:1], torch.tensor([2.0]), torch.tensor([0.0]))
    assert logprob.exp().item() == pytest.approx(0.5 ** 0.5 / (0.5 ** 0.5 + 1.0), abs=1e-6)  # of softmax(logits / 2)


def test_rounds_are_complete_and_nested(policy, monkeypatch):
    """The batch runs when all that could ask are waiting: three coroutines, the third of which asks for two at once."""
    engine, sizes = HFEngine(policy), []
    monkeypatch.setattr("policy.decode", lambda policy, requests: sizes.append(len(requests)) or decode(policy, requests))
    prompt = prompts(policy, 1)[0]

    async def one(seed):
        return await engine.sample(prompt, 4, seed)

    async def two():
        await asyncio.sleep(0.05)  # a script that thinks: the others wait for it
        return await engine.gather(one(2), one(3))

    async def then():
        await one(4)
        return await one(5)

    asyncio.run(engine.gather(one(0), two(), then()))
    assert sizes == [4, 1] and engine.live == 1


def test_who_has_its_sample_goes_on_while_others_decode(policy):
    """One token and forty: what follows the short one happens before the long one is done; the next round waits for both."""
    engine, events = HFEngine(policy), []

    async def one(name, tokens):
        await engine.sample(prompts(policy, 1)[0], tokens, 0)
        events.append(name)
        await asyncio.sleep(0.001)
        await engine.sample(prompts(policy, 1)[0], 1, 1)
        events.append(name)

    asyncio.run(engine.gather(one("short", 1), one("long", 40)))
    assert events[:2] == ["short", "long"] and sorted(events[2:]) == ["long", "short"]


def test_a_failing_coroutine_leaves_the_engine_usable(policy):
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def fails():
        raise KeyError("on purpose")

    async def go():
        with pytest.raises(KeyError):
            await engine.gather(engine.sample(prompt, 4, 0), fails(), engine.sample(prompt, 4, 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await engine.gather(engine.sample(prompt, 4, 2), asyncio.sleep(1))
        assert engine.live == 1 and not engine.waiting
        return await engine.sample(prompt, 4, 3)

    assert asyncio.run(go()).ids


def test_errors_of_the_model_reach_whoever_waits(policy, monkeypatch):
    """Out of memory is an EngineError (infrastructure); a bug stays what it is. Nobody waits for ever."""
    for raised, expected in ((RuntimeError("out of memory"), EngineError), (IndexError("a bug"), IndexError)):
        def fail(*_, raised=raised):
            raise raised

        monkeypatch.setattr("policy.decode", fail)
        with pytest.raises(expected):
            asyncio.run(HFEngine(policy).sample((5, 6), 4, 0))


def test_prompts_that_do_not_fit_are_refused(policy):
    with pytest.raises(PromptTooLong, match="2048"):
        asyncio.run(HFEngine(policy).sample((5,) * 2048, 4, 0))
    assert len(asyncio.run(HFEngine(policy).sample((5,) * 2047, 4, 0)).ids) == 1


def example_samples(policy, count=8):
    torch.manual_seed(0)
    return [Sample(prompt, tuple(torch.randint(5, 300, (3 + i,)).tolist()) + (policy.tokenizer.eos_token_id,), (-1.0,) * (4 + i),
                   (-1.0) ** i * 0.5, "executor") for i, prompt in enumerate(prompts(policy, count))]


def gradient(policy, batches, tokens, chunk=2048, extra=0):
    """The gradient of the token-mean policy-gradient loss over micro-batches of samples or rows, as one vector, in fp64."""
    model = copy.deepcopy(policy.model).double()
    for batch in batches:
        rows = [item if isinstance(item, Row) else Row((item,)) for item in batch]
        logprobs_K, _ = Scorer(model, chunk)(collate(rows, policy.pad_id, extra=extra))
        advantages_K = torch.tensor([s.advantage for row in rows for s in row.samples for _ in s.completion_ids])
        (-(logprobs_K * advantages_K).sum() / tokens).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_one_batch_of_eight_equals_eight_of_one_and_padding_is_free(policy):
    samples = example_samples(policy)
    tokens = sum(len(s.completion_ids) for s in samples)
    reference = gradient(policy, [samples], tokens)
    for other in (gradient(policy, [[s] for s in samples], tokens), gradient(policy, [samples], tokens, chunk=3),
                  gradient(policy, [samples], tokens, extra=17), gradient(policy, micro_batches(samples, 64), tokens)):
        assert (other - reference).abs().max() < 1e-10


def test_sharing_prompts_changes_nothing(policy):
    """Many completions behind one prompt: the same log-probabilities and the same gradient as a row each."""
    samples = example_samples(policy, 4) + [Sample(s.prompt_ids, s.completion_ids[::-1], s.old_logprobs, -1.0, s.role)
                                            for s in example_samples(policy, 3) for _ in range(2)]
    tokens = sum(len(s.completion_ids) for s in samples)
    rows = share_prompts(samples)
    assert sorted(len(row.samples) for row in rows) == [1, 3, 3, 3]
    logprobs_K, entropy_K = Scorer(policy.model)(collate(rows, policy.pad_id))
    alone = [Scorer(policy.model)(collate([Row((s,))], policy.pad_id))[0] for row in rows for s in row.samples]
    assert torch.allclose(logprobs_K, torch.cat(alone), atol=1e-5) and len(entropy_K) == tokens
    separate, shared = gradient(policy, [samples], tokens), gradient(policy, micro_batches(rows, 200), tokens, extra=5)
    assert (separate - shared).abs().max() < 2e-6  # of 1.1; the model's norms compute in fp32 whatever its type


def test_the_sampled_end_token_is_trained(policy):
    end, = [s for s in example_samples(policy, 1)]
    only_end = Sample(end.prompt_ids + end.completion_ids[:-1], end.completion_ids[-1:], (-1.0,), 1.0, "executor")
    assert gradient(policy, [[only_end]], 1).abs().max() > 1e-4
    pad = policy.tokenizer.eos_token_id  # padding with the end token itself: it is trained where it was sampled, and there only
    batch = collate([Row((end,)), Row((Sample((1, 2), (3,), (0.0,), 0.0, "executor"),))], pad)
    assert batch.target_K.tolist() == [*end.completion_ids, 3] and batch.source_K[-1] == batch.ids_B_T.shape[1] + 1


def test_micro_batches_hold_every_sample_once_within_the_budget(policy):
    samples = example_samples(policy)
    batches = micro_batches(samples, 120)
    assert sorted(map(id, (s for batch in batches for s in batch))) == sorted(map(id, samples))
    assert all(max(map(len, batch)) * len(batch) <= 120 for batch in batches)


def test_save_and_load_give_the_same_model(policy, tmp_path):
    policy.save(tmp_path / "copy")
    copy = Policy(str(tmp_path / "copy"))
    request = Request(prompts(policy, 1)[0], 16, 1.0, 3)
    assert generate(copy, [request]) == generate(policy, [request])


def test_tiny_is_tiny():
    assert sum(path.stat().st_size for path in (ROOT / "tiny").iterdir()) <= 4 << 20
