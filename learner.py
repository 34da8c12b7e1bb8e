"""The learner: one clipped policy-gradient update of the one shared model, over all ranks.

    loss = sum over all completion tokens of the global batch of policy_loss, divided by their number

A step's samples become rows that share what they have in common (scorer.py), rows become micro-batches of at most --batch-tokens tokens, so the memory of
an update does not grow with the number of samples. Every micro-batch is weighed by the global token count: 1 x 8 = 8 x 1 micro-batches,
and 1 rank = 2 ranks. Every rank makes the same passes through the same models, empty ones if need be: with --shard each is collective.

Weights, gradients and moments are fp32; the forward pass computes in --dtype. Two ways to be on several ranks:
    DDP        every rank holds all of it: 16 bytes a parameter
    --shard    torch's fully_shard: every rank holds its part, and gathers one layer at a time
Sampler and trainer never agree exactly (kernels, bf16). Their gap at the trained tokens is measured at every update (`mismatch_*`); --tis corrects
for it by truncated importance weights, with which the ratio of the loss is that of the trainer to itself: 1 with one update a step.
Test: `pytest tests/test_learner.py`. Read next: train.py.
"""
import contextlib
import copy
import datetime
import math
from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict as dcp
from torch.nn.parallel import DistributedDataParallel

import cli
import credit
from policy import Policy
from scorer import Row, Sample, Scorer, collate, micro_batches, share_prefixes

LONGEST_ROW = 4096  # tokens of a row of several samples: its mask is T x T


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sharded(config) -> bool:
    """--shard has an effect on several ranks only."""
    return config.shard and world_size() > 1


def all_reduce(value: float, op=dist.ReduceOp.SUM if dist.is_available() else None) -> float:
    """A number summed (or maxed) over the ranks; itself where there is one."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor, op)
    return tensor.item()


def gather(rows: list[dict]) -> list[dict]:
    """The rows of all ranks."""
    if not dist.is_initialized():
        return rows
    parts = [None] * world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def join(world: int, seconds: float) -> None:
    """Join the other ranks, if there are any. seconds: how long one may wait for another, as long as the slowest rollout takes."""
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=datetime.timedelta(seconds=seconds))


class Learner:
    """The shared model, its optimiser, and the update."""

    def __init__(self, policy: Policy, config):
        """config: train.Config. On return the model is on its device, whole or sharded."""
        self.policy, self.config, self.cap, self.shard = policy, config, config.importance_cap, sharded(config)
        self.scorer = Scorer(policy)
        # The references: copies that no gradient reaches, in the precision that they are computed in.
        self.start = self.reference(Policy(cli.model_path(config.model), str(policy.device)).model) if config.kl else None
        self.phase = self.reference(copy.deepcopy(policy.model)) if config.anchor and config.stage == "stagewise" and config.policies == "shared" else None
        self.module = self.distribute(self.scorer)
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        if config.checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.bad_steps = 0

    def reference(self, model):
        scorer = Scorer(self.policy, model.to(self.policy.dtype).requires_grad_(False))
        return self.distribute(scorer) if self.shard else scorer

    def distribute(self, scorer):
        """What runs forward and backward: the scorer as it is, in DDP, or sharded layer by layer."""
        if not dist.is_initialized():
            return scorer
        if not self.shard:
            return DistributedDataParallel(scorer, gradient_as_bucket_view=True)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        mesh = dist.device_mesh.init_device_mesh(self.policy.device.type, (world_size(),))
        precision = MixedPrecisionPolicy(param_dtype=self.policy.dtype, reduce_dtype=torch.promote_types(self.policy.dtype, torch.float32))
        for layer in scorer.model.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        return fully_shard(scorer, mesh=mesh, mp_policy=precision, reshard_after_forward=True)  # so that outside of it parameters are always parts

    def weights(self):
        """(name, whole tensor) of the model, one after another: what an engine takes. With --shard every rank must go through all of them."""
        for name, tensor in self.policy.model.state_dict().items():
            yield name, whole(tensor)

    def new_phase(self) -> None:
        """A phase begins: the current policy becomes the anchor's KL reference."""
        if self.phase is not None:
            with torch.no_grad():
                for old, new in zip(self.phase.parameters(), self.scorer.parameters()):
                    old.copy_(new)

    def update(self, batch: list[Sample], idle: list[Sample] = ()) -> dict:
        """Token mean over the global batch; returns the metrics of the update.

        Samples with an advantage of exactly 0 count as tokens but need no forward pass (unless there is a KL term).
        `idle` are samples of the role not being trained: --anchor weights their KL to the policy at the phase's start.
        """
        tokens, idle_tokens = (all_reduce(sum(len(sample.completion_ids) for sample in part)) for part in (batch, idle))
        totals, held = Statistics(), Statistics()
        useful = [sample for sample in batch if sample.advantage != 0 or self.config.kl]
        trained = all_reduce(sum(len(sample.completion_ids) for sample in useful))
        if trained == 0:  # nothing to learn from, on any rank
            return totals.means(1) | {"anchor_kl": 0.0, "loss": 0.0, "grad_norm": 0.0, "trained_tokens": 0, "skipped": 0}
        empty = [Row.of([Sample((self.policy.pad_id,), (self.policy.pad_id,), (0.0,), 0.0, "executor")])]
        work = []
        for part, size, kl, reference, statistics in ((useful, tokens, self.config.kl, self.start, totals), (idle, idle_tokens, self.config.anchor, self.phase, held)):
            mine = self.split(part)
            missing = int(all_reduce(len(mine), dist.ReduceOp.MAX)) - len(mine)  # on all ranks the same passes through the same models, some with a gradient of 0
            work += [(rows, size, kl, reference, statistics) for rows in mine] + [(empty, math.inf, kl, reference, Statistics())] * missing
        self.policy.model.train(self.config.checkpointing)  # transformers checkpoints in training mode only; the models have no dropout
        for number, micro_batch in enumerate(work, 1):
            with self.module.no_sync() if dist.is_initialized() and not self.shard and number < len(work) else contextlib.nullcontext():
                self.backward(*micro_batch)  # DDP sums over ranks at the last one
        self.policy.model.eval()
        norm = whole(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.config.grad_clip)).item()
        self.apply(norm)
        return totals.means(trained) | {"anchor_kl": all_reduce(held.sums["loss"]) / max(idle_tokens, 1), "loss": all_reduce(totals.sums["loss"]) / tokens,
                                        "grad_norm": norm, "trained_tokens": int(trained), "skipped": int(not math.isfinite(norm))}

    def split(self, samples) -> list[list[Row]]:
        budget = self.config.batch_tokens
        return micro_batches(share_prefixes(samples, min(budget, LONGEST_ROW), self.policy.model.config.hidden_size), budget)

    def apply(self, norm: float) -> None:
        """The optimiser's step, unless the gradient is not finite. Raises FloatingPointError the third time in a row."""
        self.bad_steps = 0 if math.isfinite(norm) else self.bad_steps + 1
        if math.isfinite(norm):
            self.optimizer.step()
        elif self.bad_steps == 3:
            raise FloatingPointError("the gradient was not finite in three steps in a row")
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, rows, tokens, kl, reference, totals) -> None:
        """Forward and backward of one micro-batch, a part of a mean over `tokens`; statistics are added to `totals`."""
        batch, device = [sample for row in rows for sample in row.samples], self.policy.device
        inputs = collate(rows, self.policy.pad_id, device)
        logprobs_K, entropy_K = self.module(inputs)
        sampler_K = torch.tensor([p for sample in batch for p in sample.old_logprobs], device=device, dtype=logprobs_K.dtype)
        advantages_K = torch.tensor([sample.advantage for sample in batch for _ in sample.completion_ids], device=device, dtype=logprobs_K.dtype)
        reference_K = None
        if kl:
            with torch.no_grad():
                reference_K, _ = reference(inputs)
        old_K, weights_K = sampler_K, None
        if self.cap:
            old_K = logprobs_K.detach()
            weights_K = credit.importance_weights(old_K, sampler_K, self.cap)
        loss_K, statistics = credit.policy_loss(logprobs_K, old_K, advantages_K, self.config.clip_low, self.config.clip_high,
                                                self.config.dual_clip, reference_K, kl, weights_K)
        (loss_K.sum() * (world_size() / tokens)).backward()  # the ranks' gradients are averaged: times their number, they are summed
        totals.add(loss=loss_K.sum(), entropy=entropy_K.sum(), **statistics, **credit.mismatch(logprobs_K, sampler_K))

    def state(self) -> dict:
        """What a checkpoint holds beside the step: weights (None where the model has them whole), optimiser, anchor. Collective with --shard."""
        if not self.shard:
            return {"weights": None, "optimizer": self.optimizer.state_dict(), "phase": self.phase and self.phase.state_dict()}
        options, weights = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True), {}
        for name, part in self.policy.model.named_parameters():  # tied weights have one name here, as in a Hugging Face folder
            tensor = whole(part.detach())
            if dist.get_rank() == 0:
                weights[name] = tensor.cpu()
        return {"weights": weights, "optimizer": dcp.get_optimizer_state_dict(self.policy.model, self.optimizer, options=options),
                "phase": self.phase and dcp.get_model_state_dict(self.phase, options=options)}

    def restore(self, state: dict) -> None:
        """Take up the optimiser and the anchor of a checkpoint; the weights are the model that it was loaded with."""
        if not self.shard:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.phase is not None:
                self.phase.load_state_dict(state["phase"])
            return
        options = dcp.StateDictOptions(full_state_dict=True)
        dcp.set_optimizer_state_dict(self.policy.model, self.optimizer, state["optimizer"], options=options)
        if self.phase is not None:
            dcp.set_model_state_dict(self.phase, state["phase"], options=options)


class Statistics:
    """Sums over the tokens of an update, and maxima (names that end in _max)."""
    NAMES = ("loss", "ratio", "clip_frac", "approx_kl", "entropy", "mismatch_mean", "mismatch_kl", "mismatch_max")

    def __init__(self):
        self.sums = Counter(dict.fromkeys(self.NAMES, 0.0))

    def add(self, **values) -> None:
        for name, value in values.items():
            self.sums[name] = max(self.sums[name], value.item()) if name.endswith("_max") else self.sums[name] + value.item()

    def means(self, tokens: float) -> dict:
        """Over the tokens of all ranks."""
        return {name: all_reduce(value, dist.ReduceOp.MAX) if name.endswith("_max") else all_reduce(value) / tokens
                for name, value in self.sums.items() if name != "loss"}


def whole(tensor):
    """A tensor of which this rank may hold only a part. Collective if it does."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
