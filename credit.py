"""Credit: rewards of a rollout -> advantages of both roles -> the GRPO loss; and which role learns when.

Pure functions on tensors: no model, no globals, no communication. With R = rewards_Q_M_N (Q questions, M designs each,
N executions each), r[q, m] = mean_n R[q, m, n], and std with ddof = 1 and eps = 1e-6:

    designer   A_D[q, m]    = (r[q, m] - mean_m r[q]) / (std_m r[q] + eps)             group: the M designs of a question
    executor   A_E[q, m, n] = (R[q, m, n] - mean_mn R[q]) / (std_mn R[q] + eps)        group "question" (the paper's)
               A_E[q, m, n] = (R[q, m, n] - mean_n R[q, m]) / (std_n R[q, m] + eps)    group "design"
    loss       L = - sum_k min(ratio_k A_k, clip(ratio_k, 1 - low, 1 + high) A_k) / K,  ratio_k = exp(logprob_k - old_logprob_k)

over all K completion tokens of the global batch. Source: arXiv 2605.14212 for the groups and the stages; GRPO for the rest.

Traps avoided: groups never mix questions; mean and std are over executions, so that one with more calls does not weigh more;
nothing is padded into a group; infrastructure failures are excluded, while script failures count as reward 0.

`python credit.py` prints a worked example.  Test: `pytest tests/test_credit.py`. Read next: train.py.
"""
import torch

EPS = 1e-6


def _normalise(values_G_N, valid_G_N, norm):
    """Centre each row on the mean of its valid entries, and divide by their std ("std") or not ("none").

    Rows of fewer than two valid entries, or of equals, give exact zeros; so do invalid entries.
    """
    if norm not in ("std", "none"):
        raise ValueError(f"norm {norm!r}: std or none")
    count_G_1 = valid_G_N.sum(1, keepdim=True)
    values_G_N = torch.where(valid_G_N, values_G_N, 0.0)
    mean_G_1 = values_G_N.sum(1, keepdim=True) / count_G_1.clamp(min=1)
    centred_G_N = torch.where(valid_G_N, values_G_N - mean_G_1, 0.0)
    std_G_1 = (centred_G_N.square().sum(1, keepdim=True) / (count_G_1 - 1).clamp(min=1)).sqrt()
    # Equals differ from their mean by rounding, which a division by eps would blow up: they are zeros by rule.
    scale_G_1 = torch.where(std_G_1 < 1e-9, 0.0, 1.0 / (std_G_1 + EPS) if norm == "std" else 1.0)
    return centred_G_N * scale_G_1


def _prepare(rewards_Q_M_N, valid_Q_M_N):
    rewards = torch.as_tensor(rewards_Q_M_N)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid_Q_M_N is None else torch.as_tensor(valid_Q_M_N).bool()
    if rewards.dim() != 3 or valid.shape != rewards.shape:
        raise ValueError(f"rewards_Q_M_N has shape {tuple(rewards.shape)}, valid_Q_M_N {tuple(valid.shape)}: both are (Q, M, N)")
    return rewards.double(), valid, rewards.dtype


def design_rewards(rewards_Q_M_N, valid_Q_M_N=None):
    """r[q, m], the mean over the valid executions of a design (0 where it has none), and which designs have one.

    >>> design_rewards(torch.tensor([[[1., 0.], [1., 1.]]]))[0]
    tensor([[0.5000, 1.0000]])
    """
    rewards, valid, dtype = _prepare(rewards_Q_M_N, valid_Q_M_N)
    count_Q_M = valid.sum(2)
    return (torch.where(valid, rewards, 0.0).sum(2) / count_Q_M.clamp(min=1)).to(dtype), count_Q_M > 0


def designer_advantages(rewards_Q_M_N, valid_Q_M_N=None, norm="std", credit="mean"):
    """advantages_Q_M of the designs: a design's mean reward against those of the question's other designs (credit "mean", the paper).

    Two ablations: "single" credits a design by its first execution alone; "shared" gives
    a design the mean advantage of its executions: without invalid ones that is "mean", but divided by the std over executions.

    >>> designer_advantages(torch.tensor([[[1., 0.], [1., 1.]]])).round(decimals=3)
    tensor([[-0.7070,  0.7070]])
    """
    rewards, valid, dtype = _prepare(rewards_Q_M_N, valid_Q_M_N)
    if credit not in ("mean", "single", "shared"):
        raise ValueError(f"credit {credit!r}: mean, single or shared")
    if credit == "shared":
        return design_rewards(executor_advantages(rewards, valid, "question", norm), valid)[0].to(dtype)
    if credit == "single":
        rewards, valid = rewards[..., :1], valid[..., :1]
    return _normalise(*design_rewards(rewards, valid), norm).to(dtype)


def executor_advantages(rewards_Q_M_N, valid_Q_M_N=None, group="question", norm="std"):
    """advantages_Q_M_N of the executions, within their question (the paper) or within their design.

    >>> executor_advantages(torch.tensor([[[1., 0.], [1., 1.]]])).round(decimals=3)
    tensor([[[ 0.5000, -1.5000],
             [ 0.5000,  0.5000]]])
    >>> executor_advantages(torch.tensor([[[1., 0.], [1., 1.]]]), group="design").round(decimals=3)
    tensor([[[ 0.7070, -0.7070],
             [ 0.0000,  0.0000]]])
    """
    rewards, valid, dtype = _prepare(rewards_Q_M_N, valid_Q_M_N)
    Q, M, N = rewards.shape
    if group not in ("question", "design"):
        raise ValueError(f"group {group!r}: question or design")
    rows = Q if group == "question" else Q * M
    return _normalise(rewards.reshape(rows, -1), valid.reshape(rows, -1), norm).reshape(Q, M, N).to(dtype)


def variance_split(rewards_Q_M_N, valid_Q_M_N=None):
    """The reward's variance within a question, split: (between designs, within a design); their sum is the total.

    Law of total variance, averaged over questions: how much depends on the design, and how much on the luck of a run.

    >>> variance_split(torch.tensor([[[1., 0.], [1., 1.]]]))
    (0.0625, 0.125)
    """
    rewards, valid, _ = _prepare(rewards_Q_M_N, valid_Q_M_N)
    means_Q_M, _ = design_rewards(rewards, valid)
    count_Q = valid.sum((1, 2)).clamp(min=1)
    mean_Q = torch.where(valid, rewards, 0.0).sum((1, 2)) / count_Q
    between_Q = ((means_Q_M - mean_Q[:, None]).square() * valid.sum(2)).sum(1) / count_Q
    within_Q = torch.where(valid, (rewards - means_Q_M[..., None]).square(), 0.0).sum((1, 2)) / count_Q
    return between_Q.mean().item(), within_Q.mean().item()


def policy_loss(logprobs_K, old_logprobs_K, advantages_K, clip_low=0.2, clip_high=0.2, dual_clip=None, ref_logprobs_K=None, kl=0.0,
                weights_K=None):
    """The clipped loss of each token, to be summed and divided by the tokens of the global batch; and its statistics.

    dual_clip c > 1 bounds the loss of a negative advantage at -c A. kl weighs the k3 estimate of KL(policy || reference),
    exp(ref - logprob) - (ref - logprob) - 1. weights_K are `importance_weights`, of the clipped term alone. Returns (loss_K, {"ratio", "clip_frac", "approx_kl"} as sums over tokens).

    >>> policy_loss(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([1.0]))[0]  # ratio 2, clipped at 1.2
    tensor([-1.2000])
    >>> policy_loss(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([-1.0]))[0]
    tensor([2.])
    """
    assert logprobs_K.shape == old_logprobs_K.shape == advantages_K.shape
    log_ratio_K = logprobs_K - old_logprobs_K
    ratio_K = log_ratio_K.exp()
    loss_K = -torch.minimum(ratio_K * advantages_K, ratio_K.clamp(1 - clip_low, 1 + clip_high) * advantages_K)
    clipped_K = (ratio_K > 1 + clip_high) & (advantages_K > 0) | (ratio_K < 1 - clip_low) & (advantages_K < 0)
    if dual_clip is not None:
        loss_K = torch.where(advantages_K < 0, torch.minimum(loss_K, -dual_clip * advantages_K), loss_K)
    if weights_K is not None:
        loss_K = loss_K * weights_K
    if kl:
        difference_K = ref_logprobs_K - logprobs_K
        loss_K = loss_K + kl * (difference_K.exp() - difference_K - 1)
    with torch.no_grad():
        statistics = {"ratio": ratio_K.sum(), "clip_frac": clipped_K.sum(), "approx_kl": (ratio_K - 1 - log_ratio_K).sum()}
    return loss_K, statistics


def importance_weights(logprobs_K, sampler_logprobs_K, cap):
    """min(p / q, cap) for tokens that were sampled from q and are trained as if from p: truncated importance sampling.

    Unbiased but for the cap, which bounds the variance that a few tokens with a small q would bring (Ionides 2008; for samplers that differ
    from the trainer, Yao et al. 2025). Without gradient.

    >>> importance_weights(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.4, 0.1]).log(), cap=2.0)
    tensor([1.2500, 2.0000])
    """
    return (logprobs_K - sampler_logprobs_K).detach().exp().clamp(max=cap)


def mismatch(logprobs_K, sampler_logprobs_K):
    """How far the trainer's log-probabilities are from the sampler's: sums of |difference| and of the k3 estimate of KL(sampler || trainer), and the
    largest |difference|.

    >>> {name: round(value.item(), 3) for name, value in mismatch(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.5])).items()}
    {'mismatch_mean': 0.5, 'mismatch_max': 0.5, 'mismatch_kl': 0.107}
    """
    with torch.no_grad():
        gap_K = logprobs_K - sampler_logprobs_K
        return {"mismatch_mean": gap_K.abs().sum(), "mismatch_max": gap_K.abs().max(), "mismatch_kl": (gap_K.exp() - gap_K - 1).sum()}


def trained_roles(step, stage="stagewise", phase_steps=30, first="executor"):
    """The roles whose samples enter the loss at `step` (from 0). Stagewise: phases of `phase_steps` steps, in turn.

    >>> [sorted(trained_roles(step, phase_steps=10)) for step in (0, 9, 10, 20)]
    [['executor'], ['executor'], ['designer'], ['executor']]
    """
    if stage == "both":
        return frozenset({"designer", "executor"})
    if stage in ("designer", "executor"):
        return frozenset({stage})
    if stage != "stagewise" or first not in ("designer", "executor") or phase_steps < 1:
        raise ValueError(f"stage {stage!r}, first {first!r}, phase_steps {phase_steps}: no such schedule")
    second = "designer" if first == "executor" else "executor"
    return frozenset({first if (step // phase_steps) % 2 == 0 else second})


def worked_example() -> str:
    """Two questions, two designs each, two executions each: every number of the credit."""
    rewards = torch.tensor([[[1., 0.], [1., 1.]], [[0., 0.], [0., 0.]]])
    between, within = variance_split(rewards)
    return "\n".join([
        "rewards_Q_M_N (question 0: a design that is right half the time, one that is always right; question 1: all wrong)",
        f"{rewards.tolist()}",
        f"design rewards r_Q_M            {design_rewards(rewards)[0].tolist()}",
        f"designer advantages_Q_M         {designer_advantages(rewards).round(decimals=3).tolist()}",
        f"executor advantages_Q_M_N       {executor_advantages(rewards).round(decimals=3).tolist()}  (group: question)",
        f"executor advantages_Q_M_N       {executor_advantages(rewards, group='design').round(decimals=3).tolist()}  (group: design)",
        f"variance of the reward          {between:.4f} between designs + {within:.4f} within a design",
        "Question 1 teaches nothing: all its rewards are equal, and its advantages are exact zeros.",
    ])


if __name__ == "__main__":
    print(worked_example())
