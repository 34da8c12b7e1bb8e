"""Shared prefixes, padding, chunks and micro-batches change no number."""

import copy
from dataclasses import replace

import torch
from conftest import ROOT, prompts

from data_types import Sample
from lib.prefix_sharing import Row, collate_rows, make_row, micro_batches, share_prefixes
from policy import CompletionLogprobs, Policy, collate

WIDE = 10_000  # so wide a model that all sharing pays


def example_samples(policy, count=8):
    torch.manual_seed(0)
    samples = []
    for i, prompt in enumerate(prompts(policy, count)):
        ids = (*torch.randint(5, 300, (3 + i,)).tolist(), policy.tokenizer.eos_token_id)
        advantage = (-1.0) ** i * 0.5
        samples.append(Sample(prompt, ids, (-1.0,) * len(ids), advantage, "executor"))
    return samples


def num_tokens(samples):
    return sum(len(sample.completion_ids) for sample in samples)


def gradient(policy, batches, tokens, chunk=2048):
    """The gradient of the token-mean policy-gradient loss, as one vector, in fp64.

    batches: micro-batches of samples (plain rows) or of rows.
    """
    model = copy.deepcopy(policy.model).double()
    logprobs = CompletionLogprobs(policy, model)
    logprobs.chunk = chunk
    for batch in batches:
        if isinstance(batch[0], Row):
            samples = [sample for row in batch for sample in row.samples]
            tensors = collate_rows(batch, policy.pad_id)
        else:
            samples = batch
            tensors = collate(batch, policy.pad_id)
        logprobs_K, _ = logprobs(tensors)
        advantages_K = torch.tensor([s.advantage for s in samples for _ in s.completion_ids])
        (-(logprobs_K * advantages_K).sum() / tokens).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_one_batch_of_eight_equals_eight_of_one_and_padding_is_free(policy):
    samples = example_samples(policy)
    tokens = num_tokens(samples)
    reference = gradient(policy, [samples], tokens)
    neutral = replace(samples[0], prompt_ids=samples[0].prompt_ids * 2, advantage=0.0)
    for other in (
        gradient(policy, [[sample] for sample in samples], tokens),
        gradient(policy, [samples], tokens, chunk=3),
        gradient(policy, [[*samples, neutral]], tokens),  # a longer row: more padding
        gradient(policy, micro_batches(samples, 64), tokens),
        gradient(policy, [[make_row([sample]) for sample in samples]], tokens),
    ):
        assert (other - reference).abs().max() < 1e-10


def test_sharing_prefixes_changes_nothing(policy):
    """Completions behind one prompt, prompts behind one documentation, turns behind a conversation,
    and the same completion twice: the log-probabilities and the gradient of a row each."""
    base = example_samples(policy, 4)
    first = base[0]
    samples = list(base)
    for sample in base:
        reverse = replace(sample, completion_ids=sample.completion_ids[::-1], advantage=-1.0)
        samples += [reverse, reverse]
        documented = first.prompt_ids[:9] + sample.prompt_ids
        samples.append(replace(sample, prompt_ids=documented, advantage=0.3))
    conversation = first.prompt_ids + first.completion_ids + (7, 8)
    reply = (9, policy.tokenizer.eos_token_id)
    samples.append(Sample(conversation, reply, (-1.0,) * 2, 2.0, "executor"))
    tokens = num_tokens(samples)

    rows = share_prefixes(samples, 2048, WIDE)
    assert len(rows) == 1 and len(rows[0]) < sum(len(sample) for sample in samples) / 2
    logprobs_K, entropy_K = CompletionLogprobs(policy)(collate_rows(rows, policy.pad_id))
    assert len(logprobs_K) == len(entropy_K) == tokens
    alone = []
    for sample in rows[0].samples:
        alone.append(CompletionLogprobs(policy)(collate([sample], policy.pad_id))[0])
    assert torch.allclose(logprobs_K, torch.cat(alone), atol=1e-5)

    separate = gradient(policy, [samples], tokens)
    for limit in (60, 120, 2048):
        batches = micro_batches(share_prefixes(samples, limit, WIDE), 200)
        shared = gradient(policy, batches, tokens)
        # Of 1.1; the model's norms compute in fp32 whatever its type.
        assert (separate - shared).abs().max() < 3e-6


def test_prefixes_are_shared_only_where_it_pays(policy):
    """Two long sequences that share little: one row would cost more attention than it saves. Many
    that share much: one row."""
    long = []
    for i in range(2):
        ids = tuple(range(10 + i, 700 + i))
        long.append(Sample((1, 2, 3), ids, (0.0,) * 690, 1.0, "executor"))
    assert len(share_prefixes(long, 4096, 8)) == 2
    short = [Sample(tuple(range(500)), (i, 1), (0.0,) * 2, 1.0, "designer") for i in range(8)]
    (row,) = share_prefixes(short, 4096, 8)
    assert len(row) == 500 + 8 * 2
    # Never above the limit, but for a sample that is longer by itself.
    assert [len(row.samples) for row in share_prefixes(short, 504, 8)] == [2, 2, 2, 2]
    assert len(share_prefixes(long[:1], 10, 8)[0]) == 693


def test_the_sampled_end_token_is_trained(policy):
    (sample,) = example_samples(policy, 1)
    only_end = replace(
        sample,
        prompt_ids=sample.prompt_ids + sample.completion_ids[:-1],
        completion_ids=sample.completion_ids[-1:],
    )
    assert gradient(policy, [[only_end]], 1).abs().max() > 1e-4
    # Padding with the end token itself: it is trained where it was sampled, and only there.
    short = Sample((1, 2), (3,), (0.0,), 0.0, "executor")
    batch = collate_rows([make_row([sample]), make_row([short])], policy.tokenizer.eos_token_id)
    assert batch.target_K.tolist() == [*sample.completion_ids, 3]
    assert batch.source_K[-1] == batch.ids_B_T.shape[1] + 1


def test_micro_batches_hold_every_sample_once_within_the_budget(policy):
    samples = example_samples(policy)
    batches = micro_batches(samples, 120)
    ids = [id(sample) for batch in batches for sample in batch]
    assert sorted(ids) == sorted(id(sample) for sample in samples)
    for batch in batches:
        assert max(len(sample) for sample in batch) * len(batch) <= 120


def shared_batch(policy):
    return collate_rows(share_prefixes(example_samples(policy), 2048, 128), policy.pad_id)


def test_bf16_autocast_is_close_and_its_gradient_is_fp32(policy):
    half = Policy(str(ROOT / "tiny"), dtype=torch.bfloat16)
    exact, _ = CompletionLogprobs(policy)(shared_batch(policy))
    rough, _ = CompletionLogprobs(half)(shared_batch(policy))
    assert rough.dtype == torch.float32 and 1e-4 < (exact - rough).abs().max() < 0.2
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.model.parameters())


def test_activation_checkpointing_changes_nothing_but_memory(policy):
    """The same gradient; and what is kept for the backward pass is a fraction."""
    gradients, kept_bytes = [], []
    for checkpointing in (False, True):
        subject = Policy(str(ROOT / "tiny"))
        if checkpointing:
            subject.model.gradient_checkpointing_enable({"use_reentrant": False})
            subject.model.train()
        sizes = {}

        def keep(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs_K, _ = CompletionLogprobs(subject)(shared_batch(policy))
            kept_bytes.append(sum(sizes.values()))
        logprobs_K.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in subject.model.parameters()]))
    plain, checkpointed = gradients
    assert (plain - checkpointed).abs().max() < 1e-4 * plain.abs().max()
    assert kept_bytes[1] < kept_bytes[0] * 0.8
