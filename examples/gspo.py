"""Another loss: GSPO (arXiv 2507.18071), one ratio for each completion, the geometric mean.

python train.py --plugin examples/gspo.py --minibatches 4 --clip 0.0003 0.0004
"""

import torch


def policy_loss(logprobs_K, old_logprobs_K, advantages_K, clip, dual_clip, lengths):
    low, high = clip
    log_ratios_K = logprobs_K - old_logprobs_K
    means = [part.mean().expand(len(part)) for part in log_ratios_K.split(lengths)]
    ratio_K = torch.cat(means).exp() if means else log_ratios_K.exp()
    clipped_K = ratio_K.clamp(1 - low, 1 + high)
    loss_K = -torch.minimum(ratio_K * advantages_K, clipped_K * advantages_K)
    with torch.no_grad():
        stats = {
            "ratio": ratio_K.sum(),
            "clip_frac": (ratio_K != clipped_K).sum(),
            "approx_kl": (log_ratios_K.exp() - 1 - log_ratios_K).sum(),
        }
    return loss_K, stats
