"""Prefix sharing: rows in which samples with a common beginning compute it once.

Many samples of a step share prefixes: the designs of a question its prompt, all designs the blocks'
documentation, the turns of an agent its conversation. Such samples become one row, a trie of tokens
in depth-first order. A token attends to its ancestors in the trie, which are the tokens before it
in its own sequence. So each shared token goes through the model once, and the gradient is the same
as with a row for each sample (policy.collate).

    two samples  1 2 3  and  1 2 4   ->   row 1 2 3 4, where 4 sees 1, 2 and itself, not 3

Test: `pytest tests/test_prefix_sharing.py`. Read next: distributed.py.
"""

import os
from dataclasses import dataclass

import torch

from data_types import Sample
from lib.distributed import all_reduce_max
from lib.ways import text_config
from policy import Batch

ALIGNMENT = 128  # on a GPU rows are padded to a multiple of so many tokens: kernels are reused
LONGEST_ROW = 4096  # tokens of a row of several samples: its mask is T x T


@dataclass(frozen=True)
class Row:
    """Samples as a trie. Nodes are in depth-first order: node j is an ancestor of node i exactly
    where j <= i < exit[j].

    >>> row = make_row([Sample((1, 2), (end,), (0.0,), 1.0, "designer") for end in (3, 4)])
    >>> row.ids, row.depth, row.exit, row.paths
    ((1, 2, 3, 4), (0, 1, 2, 2), (4, 4, 3, 4), ((0, 1, 2), (0, 1, 3)))
    """

    samples: tuple[Sample, ...]
    ids: tuple[int, ...]  # the token of each node
    depth: tuple[int, ...]  # its position in its sequence
    exit: tuple[int, ...]  # the first node after it that is not below it
    paths: tuple[tuple[int, ...], ...]  # the nodes of each sample, first token to last

    def __len__(self) -> int:
        return len(self.ids)


def make_row(samples: list[Sample]) -> Row:
    """The row of `samples`, which are in lexicographic order of their tokens."""
    ids, depth, exits, paths = [], [], [], []
    path = []  # the nodes of the sample before
    previous = ()
    for sample in samples:
        tokens = sample.prompt_ids + sample.completion_ids
        num_shared = len(os.path.commonprefix([tokens, previous]))
        num_new = len(tokens) - num_shared
        for node in path[num_shared:]:
            exits[node] = len(ids)
        path = path[:num_shared] + list(range(len(ids), len(ids) + num_new))
        ids += tokens[num_shared:]
        depth += range(num_shared, len(tokens))
        exits += [0] * num_new
        paths.append(tuple(path))
        previous = tokens
    for node in path:
        exits[node] = len(ids)
    return Row(tuple(samples), tuple(ids), tuple(depth), tuple(exits), tuple(paths))


def share_prefixes(samples: list[Sample], max_tokens: int, hidden_size: int) -> list[Row]:
    """Rows in which shared prefixes are computed once, where that is cheaper.

    A row has at most max_tokens tokens, but for a single sample that is longer. A row of T tokens
    costs 6 H T + T^2, in units of one pair of attention (4 H operations; the matrices of a layer
    take 24 H^2 for a token). A sample joins its neighbour where that costs less than a row of its
    own.
    """
    linear = 6 * hidden_size
    groups = []
    group_length = 0
    previous = ()
    for sample in sorted(samples, key=lambda sample: sample.prompt_ids + sample.completion_ids):
        tokens = sample.prompt_ids + sample.completion_ids
        num_new = len(tokens) - len(os.path.commonprefix([tokens, previous]))
        cost_joined = num_new * (linear + 2 * group_length + num_new)
        cost_alone = len(tokens) * (linear + len(tokens))
        fits = group_length + num_new <= max_tokens
        if groups and fits and cost_joined <= cost_alone:
            groups[-1].append(sample)
            group_length += num_new
        else:
            groups.append([sample])
            group_length = len(tokens)
        previous = tokens
    return [make_row(group) for group in groups]


def collate_rows(rows: list[Row], pad_id: int, device="cpu") -> Batch:
    """Right-padded tensors of rows. Completion tokens are in the order of the samples."""
    B, T = len(rows), max(len(row) for row in rows)
    if torch.device(device).type == "cuda":
        T = -(-T // ALIGNMENT) * ALIGNMENT
    ids_B_T = torch.full((B, T), pad_id)
    position_B_T = torch.zeros(B, T, dtype=torch.long)
    exit_B_T = torch.zeros(B, T, dtype=torch.long)  # 0 in the padding
    source_K, target_K = [], []

    for b, row in enumerate(rows):
        ids_B_T[b, : len(row)] = torch.tensor(row.ids)
        position_B_T[b, : len(row)] = torch.tensor(row.depth)
        exit_B_T[b, : len(row)] = torch.tensor(row.exit)
        for sample, path in zip(row.samples, row.paths):
            first = len(sample.prompt_ids)
            source_K += [b * T + node for node in path[first - 1 : -1]]
            target_K += sample.completion_ids

    # A plain row needs no mask: no token sees the padding, which comes after it. So the attention
    # kernels can be causal ones.
    is_plain = not any(map(is_shared, rows))
    mask = torch.ones_like(exit_B_T) if is_plain else ancestor_mask(exit_B_T)
    return Batch(
        ids_B_T=ids_B_T.to(device),
        position_B_T=position_B_T.to(device),
        mask=mask.to(device),
        source_K=torch.tensor(source_K, device=device),
        target_K=torch.tensor(target_K, device=device),
    )


def ancestor_mask(exit_B_T: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T), True from a node to itself and its ancestors."""
    T = exit_B_T.shape[1]
    query_T_1 = torch.arange(T)[:, None]
    key_1_T = torch.arange(T)[None, :]
    is_below_B_T_T = query_T_1 < exit_B_T[:, None, :]
    sees_itself = query_T_1 == key_1_T  # padding too: a row of nothing would be NaN
    return ((key_1_T <= query_T_1) & (is_below_B_T_T | sees_itself))[:, None]


def micro_batches(rows: list, max_tokens: int) -> list[list]:
    """Split rows into micro-batches of at most max_tokens padded tokens, each of similar lengths.

    Rows of several samples, whose mask is T x T, are apart from plain ones.

    >>> [len(batch) for batch in micro_batches(["aaaa", "bb", "cc", "d"], max_tokens=4)]
    [1, 2, 1]
    """
    batches = []
    for row in sorted(rows, key=lambda row: (is_shared(row), len(row)), reverse=True):
        last = batches[-1] if batches else []
        if last and is_shared(last[0]) == is_shared(row):
            if (len(last) + 1) * len(last[0]) <= max_tokens:
                last.append(row)
                continue
        batches.append([row])
    return batches


def is_shared(row) -> bool:
    """Whether it is a row of several samples."""
    return len(getattr(row, "samples", ())) > 1


class MicroBatch:
    """Rows that go through the model together; a row is a sample, or several as a trie."""

    def __init__(self, rows: list[Row], policy, is_empty: bool = False):
        self.rows = rows
        self.policy = policy
        self.is_empty = is_empty  # nothing but one token that does not count
        self.samples = [sample for row in rows for sample in row.samples]
        self.trainer_logprobs_K = None  # before the update, once they are computed

    @property
    def batch(self) -> Batch:
        return collate_rows(self.rows, self.policy.pad_id, self.policy.device)

    @torch.no_grad()
    def keep_trainer_logprobs(self, model) -> None:
        self.trainer_logprobs_K, _ = model(self.batch)

    def per_token(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sampler_logprobs_K, advantages_K), on the device of `like` and as precise."""
        logprobs = [logprob for s in self.samples for logprob in s.sampler_logprobs]
        advantages = [s.advantage for s in self.samples for _ in s.completion_ids]
        return like.new_tensor(logprobs), like.new_tensor(advantages)


def make_rows(samples: list[Sample], max_tokens: int, policy) -> list[Row]:
    """Rows of at most max_tokens tokens, with shared prefixes if the model can be so computed."""
    if not policy.way.share_prefixes:
        return [make_row([sample]) for sample in samples]
    hidden_size = text_config(policy.model).hidden_size
    return share_prefixes(samples, max_tokens, hidden_size)


def make_micro_batches(samples: list[Sample], max_tokens: int, policy) -> list[MicroBatch]:
    """Samples in micro-batches of at most max_tokens padded tokens. Collective.

    A pass through the model is collective, too: every rank makes as many, some on nothing.
    """
    rows = make_rows(samples, min(max_tokens, LONGEST_ROW), policy)
    batches = [MicroBatch(group, policy) for group in micro_batches(rows, max_tokens)]
    pad = (policy.pad_id,)
    nothing = make_row([Sample(pad, pad, (0.0,), 0.0, "executor", weight=0.0)])
    for _ in range(int(all_reduce_max(len(batches))) - len(batches)):
        batches.append(MicroBatch([nothing], policy, is_empty=True))
    return batches
