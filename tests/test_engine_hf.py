"""The hf engine: the same samples whatever the batch; rounds that do not depend on timing."""

import asyncio

import pytest
import torch
from conftest import ROOT, prompts
from transformers import Cache

from engines.hf import HFEngine, Request, decode, sample_tokens
from lib.errors import EngineError, PromptTooLong
from policy import Policy


def generate(policy, requests):
    """The completions of a batch, in its order."""
    completions = {}
    for finished in decode(policy, requests):
        completions.update(finished)
    return [completions[index] for index in range(len(requests))]


def expected_logprobs(policy, prompt, completion, temperature=1.0):
    """By one forward pass over the sequence."""
    logits = policy.model(torch.tensor([prompt + completion.ids])).logits[0] / temperature
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logprobs.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]


def close(completion, expected, atol=1e-4):
    return torch.allclose(torch.tensor(completion.logprobs), torch.as_tensor(expected), atol=atol)


# ------------------------------------------------------------------------------------ the samples


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(policy):
    requests = [Request(prompt, 12 + i % 5, 1.0, i) for i, prompt in enumerate(prompts(policy, 24))]
    together = generate(policy, requests)
    assert [c.ids for c in together] == [generate(policy, [request])[0].ids for request in requests]
    same, other = generate(policy, [requests[0], Request(requests[0].prompt_ids, 12, 1.0, 99)])
    assert same.ids == together[0].ids != other.ids


def test_logprobs_are_those_of_the_model(policy):
    for i, prompt in enumerate(prompts(policy, 6)):
        (completion,) = generate(policy, [Request(prompt, 16, 1.0, i)])
        assert close(completion, expected_logprobs(policy, prompt, completion))
        assert len(completion.ids) == len(completion.logprobs) <= 16
        assert completion.truncated == (completion.ids[-1] not in policy.end_ids)


def test_tokens_are_sampled_by_inverse_cdf():
    """The token whose stretch of [0, 1) holds the number. Probabilities 1/2, 1/4, 1/4."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(5, 1)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.76, 0.999999])
    token, logprob = sample_tokens(logits, torch.ones(5), uniform)
    assert token.tolist() == [0, 0, 1, 2, 2]
    assert torch.allclose(logprob.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))
    greedy, _ = sample_tokens(logits, torch.zeros(5), torch.rand(5))
    assert greedy.tolist() == [0] * 5  # temperature 0: the most likely
    _, logprob = sample_tokens(logits[:1], torch.tensor([2.0]), torch.tensor([0.0]))
    expected = 0.5**0.5 / (0.5**0.5 + 1.0)  # softmax(logits / 2)
    assert logprob.exp().item() == pytest.approx(expected, abs=1e-6)


def test_prompts_that_do_not_fit_are_refused(policy):
    with pytest.raises(PromptTooLong, match="2048"):
        asyncio.run(HFEngine(policy).sample((5,) * 2048, 4, 0))
    assert len(asyncio.run(HFEngine(policy).sample((5,) * 2047, 4, 0)).ids) == 1


def test_what_all_prompts_begin_with_is_computed_once(policy):
    """A long common beginning, then different ends: the same samples and log-probabilities."""
    ends = prompts(policy, 5)
    shared = tuple(range(5, 105))
    requests = [Request(shared + ends[i % 5][: 6 + i % 5], 12, 1.0, i) for i in range(8)]
    shapes = []
    handle = policy.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        together = generate(policy, requests)
    finally:
        handle.remove()
    longest = max(len(request.prompt_ids) for request in requests)
    assert shapes[0][0] == 1 and shapes[0][1] >= 100
    assert shapes[1] == (5, longest - shapes[0][1])
    for completion, request in zip(together, requests):
        (alone,) = generate(policy, [request])
        assert completion.ids == alone.ids and close(completion, alone.logprobs, 1e-5)


def test_the_cache_that_grows_and_grouped_attention_change_nothing(policy):
    """Decoding token by token, through more positions than a buffer holds at first, equals one
    forward pass of transformers' own attention."""
    prompt = prompts(policy, 1)[0]
    (completion,) = generate(policy, [Request(prompt, 150, 10.0, 5)])  # hot, so that it goes on
    plain = Policy(str(ROOT / "tiny"))
    plain.model.set_attn_implementation("sdpa")
    assert len(completion.ids) > 64
    assert close(completion, expected_logprobs(plain, prompt, completion, temperature=10.0))


def test_rows_leave_the_cache_when_half_of_them_are_done(policy, monkeypatch):
    """Of four rows, which get a copy of their common prompt, two stay, then one to its end."""
    select, kept = Cache.batch_select_indices, []

    def counted(cache, rows):
        kept.append(len(rows))
        select(cache, rows)

    monkeypatch.setattr(Cache, "batch_select_indices", counted)
    prompt = prompts(policy, 1)[0]
    monkeypatch.setattr(policy, "end_ids", frozenset())

    async def lengths(*counts):
        engine = HFEngine(policy)
        await gather(*(engine.sample(prompt, n, seed) for seed, n in enumerate(counts)))

    asyncio.run(lengths(2, 4, 6, 30))
    assert kept == [4, 2, 1]


def test_a_bf16_engine_samples_from_a_copy_that_an_update_renews():
    """The trainer's weights stay fp32; the engine's follow them at update_weights, not before."""
    subject = Policy(str(ROOT / "tiny"), dtype=torch.bfloat16)
    engine = HFEngine(subject)
    prompt = prompts(subject, 1)[0]
    before = asyncio.run(engine.sample(prompt, 8, 0))
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(0.5)
    assert asyncio.run(engine.sample(prompt, 8, 0)) == before
    engine.update_weights(subject.model.state_dict().items())
    assert asyncio.run(engine.sample(prompt, 8, 0)) != before
    assert engine.model.dtype == torch.bfloat16 and subject.model.dtype == torch.float32


# ------------------------------------------------------------------------------------- the rounds


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that are decoded."""
    sizes = []

    def counting(policy, requests, model):
        sizes.append(len(requests))
        return decode(policy, requests, model)

    monkeypatch.setattr("engines.hf.decode", counting)
    return sizes


async def gather(*coroutines):
    return await asyncio.gather(*coroutines)


def test_rounds_are_complete_and_nested(policy, batches):
    """A round begins when all that could ask are waiting: here three coroutines, of which one
    thinks first and then asks for two at the same time."""
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def thinks():
        await asyncio.sleep(0.05)  # a script, a tool, a grader
        return await asyncio.gather(engine.sample(prompt, 4, 2), engine.sample(prompt, 4, 3))

    async def twice():
        await engine.sample(prompt, 4, 4)
        return await engine.sample(prompt, 4, 5)

    asyncio.run(gather(engine.sample(prompt, 4, 0), thinks(), twice()))
    assert batches == [4, 1]


def test_a_thread_or_a_timeout_is_waited_for(policy, batches):
    """Whatever a coroutine waits for but a sample, it might ask afterwards."""
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def grades():
        await asyncio.to_thread(lambda: None)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.02)
            return await engine.sample(prompt, 4, 1)

    asyncio.run(gather(engine.sample(prompt, 4, 0), grades()))
    assert batches == [2]


def test_a_coroutine_that_ends_without_asking_is_not_waited_for(policy, batches):
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]
    asyncio.run(gather(engine.sample(prompt, 4, 0), asyncio.sleep(0.02)))
    assert batches == [1]


def test_without_rounds_whatever_waits_is_a_batch(policy, batches):
    """For a server, whose loop has tasks that never ask."""
    engine = HFEngine(policy)
    engine.in_rounds = False
    prompt = prompts(policy, 1)[0]

    async def go():
        never_asks = asyncio.ensure_future(asyncio.sleep(60))
        await engine.sample(prompt, 4, 0)
        never_asks.cancel()

    asyncio.run(go())
    assert batches == [1]


def test_two_engines_in_one_loop(policy, batches):
    """The second engine's round waits for those that the first is still decoding for."""
    first, second = HFEngine(policy), HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def asks_both(max_tokens, seed):
        await first.sample(prompt, max_tokens, seed)
        await second.sample(prompt, 2, seed)

    asyncio.run(gather(asks_both(1, 0), asks_both(40, 1), asks_both(5, 2)))
    assert batches == [3, 3]


def test_who_has_its_sample_goes_on_while_others_decode(policy):
    """One token and forty: what follows the short one happens before the long one is done; the next
    round waits for both."""
    engine, events = HFEngine(policy), []
    prompt = prompts(policy, 1)[0]

    async def asks_twice(name, max_tokens):
        await engine.sample(prompt, max_tokens, 0)
        events.append(name)
        await asyncio.sleep(0.001)
        await engine.sample(prompt, 1, 1)
        events.append(name)

    asyncio.run(gather(asks_twice("short", 1), asks_twice("long", 40)))
    assert events[:2] == ["short", "long"] and sorted(events[2:]) == ["long", "short"]


def test_a_failing_coroutine_leaves_the_engine_usable(policy):
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def fails():
        raise KeyError("on purpose")

    async def go():
        samples = engine.sample(prompt, 4, 0), engine.sample(prompt, 4, 1)
        with pytest.raises(KeyError):
            await asyncio.gather(*samples, fails())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.gather(engine.sample(prompt, 4, 2), asyncio.sleep(1))
        completion = await engine.sample(prompt, 4, 3)
        assert not engine.waiting
        return completion

    assert asyncio.run(go()).ids


def test_errors_of_the_model_reach_whoever_waits(policy, monkeypatch):
    """Out of memory is an EngineError (infrastructure); a bug stays what it is. Nobody waits for
    ever."""
    for raised, expected in (
        (RuntimeError("out of memory"), EngineError),
        (IndexError("a bug"), IndexError),
    ):

        def fail(*_, raised=raised):
            raise raised

        monkeypatch.setattr("engines.hf.decode", fail)
        with pytest.raises(expected):
            asyncio.run(HFEngine(policy).sample((5, 6), 4, 0))
