"""Another advantage: RLOO (arXiv 2402.14740), a reward minus the mean of the group's others.

python train.py --plugin examples/rloo.py
"""

import torch

from credit import design_rewards


def leave_one_out(values_G_S, valid_G_S):
    """0 where a group has fewer than two valid entries, and for invalid ones."""
    values_G_S = torch.where(valid_G_S, values_G_S.double(), 0.0)
    count_G_1 = valid_G_S.sum(dim=1, keepdim=True)
    others_G_S = (values_G_S.sum(dim=1, keepdim=True) - values_G_S) / (count_G_1 - 1).clamp(min=1)
    return torch.where(valid_G_S & (count_G_1 > 1), values_G_S - others_G_S, 0.0).float()


def designer_advantages(rewards_Q_M_N, valid_Q_M_N):
    return leave_one_out(*design_rewards(rewards_Q_M_N, valid_Q_M_N))


def executor_advantages(rewards_Q_M_N, valid_Q_M_N, group):
    Q, M, N = rewards_Q_M_N.shape
    G = Q if group == "question" else Q * M
    advantages = leave_one_out(rewards_Q_M_N.reshape(G, -1), valid_Q_M_N.reshape(G, -1))
    return advantages.reshape(Q, M, N)
