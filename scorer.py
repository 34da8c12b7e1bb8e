"""Scoring: log-probabilities of completions under the model, with gradient, and everything that is shared computed once.

Many samples of a step share prefixes: the designs of a question begin with its prompt, all designs with the blocks' documentation, an agent's turns
with its conversation. Such samples become one row, a trie of tokens in depth-first order; a token attends to its ancestors in the trie,
which are just the tokens before it in its own sequence. So each shared token goes through the model once, and the gradient is
the same as with a row each. The head runs on distinct completion positions only.

Shapes: B rows, T positions, V vocabulary, H hidden size, K completion tokens of a micro-batch, N distinct ones of them.
Test: `pytest tests/test_scorer.py`. Read next: designer.py.
"""
import os
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from policy import Policy


@dataclass(frozen=True)
class Sample:
    """One completion to learn from, with the log-probabilities of the sampler and the advantage of its trajectory."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    advantage: float
    role: str  # "designer" or "executor"

    def __len__(self):
        return len(self.prompt_ids) + len(self.completion_ids)


class Scorer(torch.nn.Module):
    """Log-probabilities of completions under the model, with gradient: what DDP wraps.

    The head runs on completion positions only and in chunks that are recomputed in the backward pass: the logits of
    a 150k vocabulary times 8k tokens never exist at once.
    """

    def __init__(self, policy: Policy, model=None, chunk: int | None = None):
        """model: another one of the same kind (a reference). chunk: positions of the head at a time; by default 2**26 logits, 256 MiB."""
        super().__init__()
        self.model, self.autocast = model or policy.model, policy.autocast
        self.chunk = chunk or max(16, (1 << 26) // self.model.config.vocab_size)

    def forward(self, batch: "Batch"):
        """-> logprobs_K, entropy_K (without gradient): the K completion tokens of all samples, in order."""
        with self.autocast():
            hidden_B_T_H = self.model.base_model(input_ids=batch.ids_B_T, attention_mask=batch.attention(),
                                                 position_ids=batch.position_B_T, use_cache=False).last_hidden_state
            hidden_N_H = hidden_B_T_H.flatten(0, 1)[batch.source_N]
            parts = [checkpoint(self._head, hidden, targets, use_reentrant=False)
                     for hidden, targets in zip(hidden_N_H.split(self.chunk), batch.target_N.split(self.chunk))]
        return torch.cat([part[0] for part in parts])[batch.which_K], torch.cat([part[1] for part in parts])[batch.which_K]

    def _head(self, hidden_N_H, targets_N):
        logits_N_V = self.model.get_output_embeddings()(hidden_N_H)
        logprobs_N_V = log_softmax(logits_N_V, -1, dtype=torch.promote_types(logits_N_V.dtype, torch.float32))  # fp32 at least
        with torch.no_grad():
            entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
        return logprobs_N_V.gather(-1, targets_N[:, None])[:, 0], entropy_N


@dataclass(frozen=True)
class Row:
    """Samples that share prefixes, as a trie: each shared token is stored once. Nodes are in depth-first order, and a node sees its ancestors
    and itself: node j is an ancestor of node i exactly where j <= i < exit[j].

    >>> row = Row.of([Sample((1, 2), (3,), (0.,), 1., "designer"), Sample((1, 2), (4,), (0.,), 1., "designer")])
    >>> row.ids, row.depth, row.exit, row.paths
    ((1, 2, 3, 4), (0, 1, 2, 2), (4, 4, 3, 4), ((0, 1, 2), (0, 1, 3)))
    """
    samples: tuple[Sample, ...]
    ids: tuple[int, ...]  # the token of each node
    depth: tuple[int, ...]  # its position in its sequence
    exit: tuple[int, ...]  # the first node after it that is not below it
    paths: tuple[tuple[int, ...], ...]  # the nodes of each sample, from its first token to its last

    def __len__(self):
        return len(self.ids)

    @classmethod
    def of(cls, samples) -> "Row":
        """The row of `samples`, which are in lexicographic order of their tokens."""
        ids, depth, exits, paths, path, before = [], [], [], [], [], ()
        for sample in samples:
            tokens = sample.prompt_ids + sample.completion_ids
            shared = len(os.path.commonprefix([tokens, before]))
            for node in path[shared:]:
                exits[node] = len(ids)
            path = path[:shared] + list(range(len(ids), len(ids) + len(tokens) - shared))
            ids += tokens[shared:]
            depth += range(shared, len(tokens))
            exits += [0] * (len(tokens) - shared)
            paths.append(tuple(path))
            before = tokens
        for node in path:
            exits[node] = len(ids)
        return cls(tuple(samples), tuple(ids), tuple(depth), tuple(exits), tuple(paths))


def share_prefixes(samples: list[Sample], limit: int, hidden_size: int) -> list[Row]:
    """Rows in which shared beginnings are computed once, as far as it pays; at most `limit` tokens (one sample may be longer).

    The designs of a question share its prompt, all designs the documentation of the blocks, the turns of an agent its conversation. A row of T
    tokens costs 6 H T + T^2 (in units of one attention pair: 24 H^2 operations of the layers' matrices per token, 4 H per pair): a
    sample joins its neighbour where that is cheaper than a row of its own.
    """
    rows, length, before, linear = [], 0, (), 6 * hidden_size
    for tokens, sample in sorted(((sample.prompt_ids + sample.completion_ids, sample) for sample in samples), key=lambda pair: pair[0]):
        new = len(tokens) - len(os.path.commonprefix([tokens, before]))
        if rows and length + new <= limit and new * (linear + 2 * length + new) <= len(tokens) * (linear + len(tokens)):
            rows[-1].append(sample)
            length += new
        else:
            rows.append([sample])
            length = len(tokens)
        before = tokens
    return [Row.of(row) for row in rows]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. exit_B_T is 0 in padding. The distinct completion tokens target_N are predicted at the flat positions source_N, and which_K
    says which of them each completion token is, sample by sample. Which tokens are trained comes from what was sampled: the end token
    is, padding never, even where both are the same id."""
    ids_B_T: torch.Tensor
    position_B_T: torch.Tensor
    exit_B_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    which_K: torch.Tensor

    def attention(self):
        """The mask: (B, T) where every row is one sequence, so that causal kernels serve; else (B, 1, T, T), True from a node to its ancestors."""
        B, T = self.exit_B_T.shape
        if (self.position_B_T == torch.arange(T, device=self.exit_B_T.device)).logical_or(self.exit_B_T == 0).all():
            return (self.exit_B_T > 0).long()
        query, key = torch.arange(T, device=self.exit_B_T.device)[:, None], torch.arange(T, device=self.exit_B_T.device)[None, :]
        return ((key <= query) & ((query < self.exit_B_T[:, None, :]) | (key == query)))[:, None]  # padding sees itself: no row of nothing


def collate(rows: list[Row], pad_id: int, device="cpu", extra: int = 0) -> Batch:
    """Right-padded tensors of `rows`. `extra` pads more (for a test)."""
    width = max(map(len, rows)) + extra
    nodes, sources, targets, which = {}, [], [], []  # nodes: flat position of a completion token -> its place among the distinct ones
    for b, row in enumerate(rows):
        for sample, path in zip(row.samples, row.paths):
            for before, node in zip(path[len(sample.prompt_ids) - 1:], path[len(sample.prompt_ids):]):
                if b * width + node not in nodes:
                    nodes[b * width + node] = len(nodes)
                    sources.append(b * width + before)
                    targets.append(row.ids[node])
                which.append(nodes[b * width + node])
    padded = [[list(part) + [fill] * (width - len(row)) for part, row in zip(parts, rows)] for parts, fill in (
        ([row.ids for row in rows], pad_id), ([row.depth for row in rows], 0), ([row.exit for row in rows], 0))]
    return Batch(*(torch.tensor(part, device=device) for part in (*padded, sources, targets, which)))


def micro_batches(rows: list, budget: int) -> list[list]:
    """Split rows into micro-batches of at most `budget` padded tokens each, alike in length, so that little is padding.

    >>> [len(batch) for batch in micro_batches(["aaaa", "bb", "cc", "d"], budget=4)]
    [1, 2, 1]
    """
    batches = []
    for row in sorted(rows, key=len, reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
