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
    entropies = torch.zeros(B, T)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies, None)
    trainer.aux_loss_enabled = False
    trainer.top_entropy_quantile = 1.0
    trainer.off_policy_mask_threshold = None
    trainer.importance_sampling_level = "token"
    trainer.beta = beta
    trainer.loss_type = loss_type
    trainer._entropy_bonus_enabled = False
    trainer.epsilon_low, trainer.epsilon_high = 0.2, high
    trainer.use_vllm = cap is not None
    trainer.vllm_importance_sampling_correction = True
    trainer.args.delta = delta
    trainer.args.use_bias_correction_kl = False
    trainer.args.steps_per_generation = 1
    trainer.accelerator.num_processes = 1
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.training = True
    trainer.accelerator.gather = lambda tensor: tensor
    trainer._metrics = {"train": defaultdict(list)}
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
    if cap is not None:
        # With its vLLM correction, old are the trainer's own log-probabilities, and the sampler's
        # differ from those.
        batch["old_per_token_logps"] = logprobs.detach()
        batch["importance_sampling_ratio"] = (logprobs.detach() - old).exp().clamp(max=cap)
    loss = trl.GRPOTrainer._compute_loss(trainer, None, batch)
    loss.backward()
    return loss.detach(), logprobs.grad


def ours(beta, delta, cap, high):
    logprobs, old, ref, mask, advantages = inputs()
    mask_B_T = mask.bool()
    logprobs_K, sampler_K = logprobs[mask_B_T], old[mask_B_T]
    advantages_K = advantages[:, None].expand(B, T)[mask_B_T]
    old_K, weights_K = sampler_K, 1.0
    if cap is not None:
        old_K = logprobs_K.detach()
        weights_K = credit.importance_weights(logprobs_K, sampler_K, cap)
    loss_K, _ = credit.policy_loss(logprobs_K, old_K, advantages_K, (0.2, high), delta)
    loss_K = loss_K * weights_K + beta * credit.kl_penalty(logprobs_K, ref[mask_B_T])
    loss = loss_K.sum() / mask.sum()
    loss.backward()
    return loss.detach(), logprobs.grad


# A mean over all tokens of the batch, as ours.
@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
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
    their_loss, their_gradient = theirs(loss_type, beta, delta, cap, high)
    our_loss, our_gradient = ours(beta, delta, cap, high)
    assert abs(their_loss - our_loss) < 1e-6 and our_gradient.abs().max() > 1e-3
    assert (their_gradient - our_gradient).abs().max() < 1e-6


def test_advantages_are_the_same():
    """TRL: (r - mean) / (std + 1e-4) per group; ours: eps 1e-6. They are equal but for eps."""
    rewards = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.0, 1.0]])
    found = credit.designer_advantages(rewards[:, :, None])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(found, expected, rtol=1e-3)
    centred = rewards - rewards.mean(1, keepdim=True)
    assert torch.allclose(found * (rewards.std(1, keepdim=True) + 1e-6), centred, atol=1e-6)
