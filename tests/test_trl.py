"""The GRPO loss and its gradient equal those of TRL, a widely used trainer, on shared random
inputs."""

from collections import defaultdict
from unittest.mock import MagicMock

import pytest
import torch

import credit

trl = pytest.importorskip("trl", reason="TRL is not installed (tests/requirements.txt)")
B, T = 6, 9  # completions, positions


def inputs():
    """Random log-probabilities whose ratios reach far beyond the clip, ragged masks, advantages of
    both signs."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, ref = (-(torch.rand(B, T, generator=generator) * 2 + 0.1) for _ in range(3))
    mask = (torch.arange(T)[None, :] < torch.tensor([9, 4, 7, 1, 5, 8])[:, None]).int()
    advantages = torch.tensor([1.3, -0.7, 0.4, -1.9, 0.0, 0.9])
    return logprobs.requires_grad_(), old, ref, mask, advantages


def theirs(loss_type, beta, delta, cap, high):
    """TRL's loss and gradient with respect to the log-probabilities, computed by its own method."""
    logprobs, old, ref, mask, advantages = inputs()
    trainer = MagicMock(spec_set=None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        logprobs,
        torch.zeros(B, T),
        None,
    )
    trainer.aux_loss_enabled, trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = (
        False,
        1.0,
        None,
    )
    (
        trainer.importance_sampling_level,
        trainer.beta,
        trainer.loss_type,
        trainer._entropy_bonus_enabled,
    ) = "token", beta, loss_type, False
    trainer.epsilon_low, trainer.epsilon_high = 0.2, high
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = cap is not None, True
    trainer.args.delta, trainer.args.use_bias_correction_kl, trainer.args.steps_per_generation = (
        delta,
        False,
        1,
    )
    (
        trainer.accelerator.num_processes,
        trainer.current_gradient_accumulation_steps,
        trainer.model.training,
    ) = 1, 1, True
    trainer.accelerator.gather, trainer._metrics = (
        lambda tensor: tensor,
        {"train": defaultdict(list)},
    )
    batch = {
        "prompt_ids": torch.zeros(B, 2, dtype=torch.long),
        "prompt_mask": torch.ones(B, 2, dtype=torch.long),
        "completion_mask": mask,
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    if (
        cap is not None
    ):  # with its vLLM correction, old are the trainer's own log-probabilities, and the sampler's differ from those
        batch["old_per_token_logps"] = logprobs.detach()
        batch["importance_sampling_ratio"] = (logprobs.detach() - old).exp().clamp(max=cap)
    loss = trl.GRPOTrainer._compute_loss(trainer, None, batch)
    loss.backward()
    return loss.detach(), logprobs.grad


def ours(beta, delta, cap, high):
    logprobs, old, ref, mask, advantages = inputs()
    kept = mask.bool()
    flat, old_K = logprobs[kept], old[kept]
    weights = credit.importance_weights(flat, old_K, cap) if cap is not None else None
    loss_K, _ = credit.policy_loss(
        flat,
        flat.detach() if cap is not None else old_K,
        advantages[:, None].expand(B, T)[kept],
        0.2,
        high,
        delta,
        ref[kept],
        beta,
        weights,
    )
    loss = loss_K.sum() / mask.sum()
    loss.backward()
    return loss.detach(), logprobs.grad


@pytest.mark.parametrize(
    "loss_type", ["dapo", "bnpo"]
)  # a mean over all tokens of the batch, as ours
@pytest.mark.parametrize(
    "beta, delta, cap, high",
    [
        (0.0, None, None, 0.2),
        (0.0, None, None, 0.28),
        (0.04, None, None, 0.2),
        (1.0, 1.5, None, 0.2),
        (0.0, 3.0, None, 0.2),
        (0.0, None, 2.0, 0.2),
        (0.04, None, 1.2, 0.28),
    ],
)
def test_loss_and_gradient_are_the_same(loss_type, beta, delta, cap, high):
    (a, grad_a), (b, grad_b) = (
        theirs(loss_type, beta, delta, cap, high),
        ours(beta, delta, cap, high),
    )
    assert abs(a - b) < 1e-6 and (grad_a - grad_b).abs().max() < 1e-6 and grad_b.abs().max() > 1e-3


def test_advantages_are_the_same():
    """TRL: (r - mean) / (std + 1e-4) per group; ours: eps 1e-6. Without the division they are
    equal, with it but for eps."""
    rewards = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.0, 1.0]])
    found = credit.designer_advantages(rewards[:, :, None])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(found, expected, rtol=1e-3)
    assert torch.allclose(
        credit.designer_advantages(rewards[:, :, None], norm="none"),
        rewards - rewards.mean(1, keepdim=True),
        atol=1e-6,
    )
