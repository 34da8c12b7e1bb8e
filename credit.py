"""Credit: rewards of a rollout -> advantages of both roles -> the GRPO loss; and who learns when.

Pure functions on tensors. With R = rewards_Q_M_N (Q questions, M designs each, N executions each),
r[q, m] = mean_n R[q, m, n], std with ddof = 1 and eps = 1e-6:

    designer  A_D[q,m]   = (r[q,m] - mean_m r[q]) / (std_m r[q] + eps)        group: designs of q
    executor  A_E[q,m,n] = (R[q,m,n] - mean_mn R[q]) / (std_mn R[q] + eps)    group "question"
              A_E[q,m,n] = (R[q,m,n] - mean_n R[q,m]) / (std_n R[q,m] + eps)  group "design"

    loss = -sum_k min(ratio_k A_k, clip(ratio_k, 1 - low, 1 + high) A_k) / K,
    ratio_k = exp(logprob_k - old_logprob_k), over the K completion tokens of a role, all ranks

Source: arXiv 2605.14212 for groups (the paper's: question) and stages; GRPO.

Traps avoided: groups never mix questions (3); nothing is padded into a group (8); infrastructure
failures are left out, script failures count as reward 0 (9); mean and std are over executions, not
calls (16). In the loss an execution with more tokens weighs more, but for --loss-mean execution.

Example: `python credit.py`. Test: `pytest tests/test_credit.py`. Read next: config.py.
"""

import torch

EPS = 1e-6


def trained_roles(step: int, stage: str = "stagewise", phase_steps: int = 30) -> frozenset:
    """The roles whose samples enter the loss at `step` (from 0).

    Stagewise: phases of `phase_steps` steps, the executor first. The weights are shared, so the
    idle role is not frozen: its samples are left out.

    >>> [sorted(trained_roles(step, phase_steps=10)) for step in (0, 9, 10, 20)]
    [['executor'], ['executor'], ['designer'], ['executor']]
    """
    if stage == "both":
        return frozenset({"designer", "executor"})
    if stage in ("designer", "executor"):
        return frozenset({stage})
    assert stage == "stagewise" and phase_steps > 0, (stage, phase_steps)
    phase = step // phase_steps
    return frozenset({"executor" if phase % 2 == 0 else "designer"})


def as_tensors(rewards_Q_M_N, valid_Q_M_N=None):
    """Both as tensors (Q, M, N), rewards in float64. Default: all are valid."""
    rewards = torch.as_tensor(rewards_Q_M_N)
    valid = torch.ones_like(rewards) if valid_Q_M_N is None else torch.as_tensor(valid_Q_M_N)
    assert rewards.dim() == 3 and valid.shape == rewards.shape, "both: (Q, M, N)"
    return rewards.double(), valid.bool()


def design_rewards(rewards_Q_M_N, valid_Q_M_N=None):
    """r[q, m], the mean over the valid executions of a design, and which designs have any.

    >>> design_rewards(torch.tensor([[[1., 0.], [1., 1.]]]))[0]
    tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """
    rewards, valid = as_tensors(rewards_Q_M_N, valid_Q_M_N)
    count_Q_M = valid.sum(dim=2)
    sum_Q_M = torch.where(valid, rewards, 0.0).sum(dim=2)
    return sum_Q_M / count_Q_M.clamp(min=1), count_Q_M > 0


def normalise(values_G_S, valid_G_S):
    """Centre each group (row of S) on the mean of its valid entries, and divide by their std.

    Groups of fewer than two valid entries, or of equals, give exact zeros; so do invalid entries.
    """
    count_G_1 = valid_G_S.sum(dim=1, keepdim=True)
    values_G_S = torch.where(valid_G_S, values_G_S, 0.0)
    mean_G_1 = values_G_S.sum(dim=1, keepdim=True) / count_G_1.clamp(min=1)
    centred_G_S = torch.where(valid_G_S, values_G_S - mean_G_1, 0.0)
    variance_G_1 = centred_G_S.square().sum(dim=1, keepdim=True) / (count_G_1 - 1).clamp(min=1)
    std_G_1 = variance_G_1.sqrt()

    # Equal values get exactly 0, not rounding: no update has them.
    centred_G_S = torch.where(std_G_1 < 1e-9, 0.0, centred_G_S)
    return centred_G_S / (std_G_1 + EPS)


def designer_advantages(rewards_Q_M_N, valid_Q_M_N=None):
    """advantages_Q_M: the mean reward of a design against the question's other designs.

    >>> designer_advantages(torch.tensor([[[1., 0.], [1., 1.]]])).round(decimals=3)
    tensor([[-0.7070,  0.7070]])
    """
    rewards_Q_M, has_valid_Q_M = design_rewards(rewards_Q_M_N, valid_Q_M_N)
    return normalise(rewards_Q_M, has_valid_Q_M).float()


def executor_advantages(rewards_Q_M_N, valid_Q_M_N=None, group="question"):
    """advantages_Q_M_N: an execution against the others of its question, or of its design.

    >>> executor_advantages(torch.tensor([[[1., 0.], [1., 1.]]])).round(decimals=3)
    tensor([[[ 0.5000, -1.5000],
             [ 0.5000,  0.5000]]])
    >>> executor_advantages(torch.tensor([[[1., 0.], [1., 1.]]]), group="design").round(decimals=3)
    tensor([[[ 0.7070, -0.7070],
             [ 0.0000,  0.0000]]])
    """
    rewards, valid = as_tensors(rewards_Q_M_N, valid_Q_M_N)
    Q, M, N = rewards.shape
    assert group in ("question", "design"), group
    G = Q if group == "question" else Q * M
    advantages_G_S = normalise(rewards.reshape(G, -1), valid.reshape(G, -1))
    return advantages_G_S.reshape(Q, M, N).float()


def policy_loss(
    logprobs_K, old_logprobs_K, advantages_K, clip=(0.2, 0.2), dual_clip=None, lengths=None
):
    """The clipped loss of each token, and statistics as sums over tokens.

    dual_clip c > 1 bounds the loss of a negative advantage A at -c A. lengths, the tokens of each
    completion, is for losses of whole sequences.

    >>> new, old = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()  # ratio 2
    >>> policy_loss(new, old, torch.tensor([1.0]))[0]  # clipped at 1.2
    tensor([-1.2000])
    >>> policy_loss(new, old, torch.tensor([-1.0]))[0]
    tensor([2.])
    """
    assert logprobs_K.shape == old_logprobs_K.shape == advantages_K.shape
    low, high = clip
    log_ratio_K = logprobs_K - old_logprobs_K
    ratio_K = log_ratio_K.exp()
    clipped_ratio_K = ratio_K.clamp(1 - low, 1 + high)
    loss_K = -torch.minimum(ratio_K * advantages_K, clipped_ratio_K * advantages_K)
    if dual_clip is not None:
        bounded_K = torch.minimum(loss_K, -dual_clip * advantages_K)
        loss_K = torch.where(advantages_K < 0, bounded_K, loss_K)

    with torch.no_grad():
        too_high_K = (ratio_K > 1 + high) & (advantages_K > 0)
        too_low_K = (ratio_K < 1 - low) & (advantages_K < 0)
        stats = {
            "ratio": ratio_K.sum(),
            "clip_frac": (too_high_K | too_low_K).sum(),
            "approx_kl": (ratio_K - 1 - log_ratio_K).sum(),
        }
    return loss_K, stats


def kl_penalty(logprobs_K, reference_logprobs_K):
    """The k3 estimate of KL(policy || reference) of each token, as in GRPO.

    In expectation its gradient is that of KL(reference || policy).

    >>> kl_penalty(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    tensor([0.1931])
    """
    difference_K = reference_logprobs_K - logprobs_K
    return difference_K.exp() - difference_K - 1


def importance_weights(logprobs_K, sampler_logprobs_K, cap):
    """min(p / q, cap) of tokens sampled from q and trained as if from p: truncated IS.

    Unbiased but for the cap, which bounds the variance of tokens with a small q (Ionides 2008; for
    samplers that differ from the trainer, Yao et al. 2025). Without gradient.

    >>> importance_weights(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.4, 0.1]).log(), cap=2.0)
    tensor([1.2500, 2.0000])
    """
    return (logprobs_K - sampler_logprobs_K).detach().exp().clamp(max=cap)


if __name__ == "__main__":
    # Question 0: one design is right half the time, the other always. Question 1: all wrong.
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for name, values in {
        "rewards_Q_M_N": rewards,
        "design rewards r_Q_M": design_rewards(rewards)[0],
        "designer advantages_Q_M": designer_advantages(rewards),
        "executor advantages_Q_M_N": executor_advantages(rewards),
        "with group = design": executor_advantages(rewards, group="design"),
    }.items():
        print(f"{name:26} {values.double().round(decimals=3).tolist()}")
