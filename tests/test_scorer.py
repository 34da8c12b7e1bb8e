"""Scoring: shared beginnings, padding, chunks and micro-batches change nothing."""
import copy

import torch
from conftest import ROOT, prompts

from policy import Policy
from scorer import Row, Sample, Scorer, collate, micro_batches, share_prefixes


def example_samples(policy, count=8):
    torch.manual_seed(0)
    return [Sample(prompt, tuple(torch.randint(5, 300, (3 + i,)).tolist()) + (policy.tokenizer.eos_token_id,), (-1.0,) * (4 + i),
                   (-1.0) ** i * 0.5, "executor") for i, prompt in enumerate(prompts(policy, count))]


def gradient(policy, batches, tokens, chunk=2048, extra=0):
    """The gradient of the token-mean policy-gradient loss over micro-batches of samples or rows, as one vector, in fp64."""
    model = copy.deepcopy(policy.model).double()
    for batch in batches:
        rows = [item if isinstance(item, Row) else Row.of([item]) for item in batch]
        logprobs_K, _ = Scorer(policy, model, chunk)(collate(rows, policy.pad_id, extra=extra))
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


def test_sharing_beginnings_changes_nothing(policy):
    """Completions behind one prompt, prompts behind one documentation, turns behind a conversation, and the same completion twice: the same
    log-probabilities and the same gradient as a row each."""
    base, end = example_samples(policy, 4), (policy.tokenizer.eos_token_id,)
    documented = [Sample(base[0].prompt_ids[:9] + s.prompt_ids, s.completion_ids, s.old_logprobs, 0.3, s.role) for s in base]
    turn = Sample(base[0].prompt_ids + base[0].completion_ids + (7, 8), (9,) + end, (-1.0,) * 2, 2.0, "executor")
    samples = base + [Sample(s.prompt_ids, s.completion_ids[::-1], s.old_logprobs, -1.0, s.role) for s in base for _ in range(2)] + documented + [turn]
    tokens = sum(len(s.completion_ids) for s in samples)
    rows = share_prefixes(samples, 2048, 10_000)  # so wide a model that all sharing pays
    assert len(rows) == 1 and len(rows[0]) < sum(map(len, samples)) / 2
    batch = collate(rows, policy.pad_id)
    assert len(batch.source_N) < len(batch.which_K) == tokens  # equal completions are predicted once
    logprobs_K, entropy_K = Scorer(policy)(batch)
    alone = [Scorer(policy)(collate([Row.of([s])], policy.pad_id))[0] for row in rows for s in row.samples]
    assert torch.allclose(logprobs_K, torch.cat(alone), atol=1e-5) and len(entropy_K) == tokens
    separate = gradient(policy, [samples], tokens)
    for limit in (60, 120, 2048):
        shared = gradient(policy, micro_batches(share_prefixes(samples, limit, 10_000), 200), tokens, extra=5)
        assert (separate - shared).abs().max() < 3e-6  # of 1.1; the model's norms compute in fp32 whatever its type


def test_beginnings_are_shared_only_where_it_pays(policy):
    """Two long sequences that share little: one row would cost more attention than it saves. Many that share much: one row."""
    long = [Sample((1, 2, 3), tuple(range(10 + i, 700 + i)), (0.0,) * 690, 1.0, "executor") for i in range(2)]
    assert len(share_prefixes(long, 4096, 8)) == 2
    short = [Sample(tuple(range(500)), (i, 1), (0.0,) * 2, 1.0, "designer") for i in range(8)]
    row, = share_prefixes(short, 4096, 8)
    assert len(row) == 500 + 8 * 2
    assert [len(row.samples) for row in share_prefixes(short, 504, 8)] == [2, 2, 2, 2]  # and never above the limit
    assert len(share_prefixes(long[:1], 10, 8)[0]) == 693  # but for a sample that is longer by itself


def test_the_sampled_end_token_is_trained(policy):
    end, = [s for s in example_samples(policy, 1)]
    only_end = Sample(end.prompt_ids + end.completion_ids[:-1], end.completion_ids[-1:], (-1.0,), 1.0, "executor")
    assert gradient(policy, [[only_end]], 1).abs().max() > 1e-4
    pad = policy.tokenizer.eos_token_id  # padding with the end token itself: it is trained where it was sampled, and there only
    batch = collate([Row.of([end]), Row.of([Sample((1, 2), (3,), (0.0,), 0.0, "executor")])], pad)
    assert batch.target_N[batch.which_K].tolist() == [*end.completion_ids, 3] and batch.source_N[-1] == batch.ids_B_T.shape[1] + 1


def test_micro_batches_hold_every_sample_once_within_the_budget(policy):
    samples = example_samples(policy)
    batches = micro_batches(samples, 120)
    assert sorted(map(id, (s for batch in batches for s in batch))) == sorted(map(id, samples))
    assert all(max(map(len, batch)) * len(batch) <= 120 for batch in batches)



def test_bf16_autocast_is_close_and_its_gradient_is_fp32(policy):
    half = Policy(str(ROOT / "tiny"), dtype=torch.bfloat16)
    samples = example_samples(policy)
    batch = collate(share_prefixes(samples, 2048, 128), policy.pad_id)
    (exact, _), (rough, _) = Scorer(policy)(batch), Scorer(half)(batch)
    assert rough.dtype == torch.float32 and 1e-4 < (exact - rough).abs().max() < 0.2
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.model.parameters())


def test_activation_checkpointing_changes_nothing_but_memory(policy):
    """The same gradient; and the tensors that are kept for the backward pass are a fraction."""
    batch = collate(share_prefixes(example_samples(policy), 2048, 128), policy.pad_id)
    grads, kept = [], []
    for checkpointing in (False, True):
        subject = Policy(str(ROOT / "tiny"))
        if checkpointing:
            subject.model.gradient_checkpointing_enable({"use_reentrant": False})
            subject.model.train()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t, lambda t: t):
            logprobs_K, _ = Scorer(subject)(batch)
            kept.append(sum(sizes.values()))
        logprobs_K.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in subject.model.parameters()]))
    assert (grads[0] - grads[1]).abs().max() < 1e-4 * grads[0].abs().max() and kept[1] < kept[0] * 0.8
