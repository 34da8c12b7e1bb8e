"""Another advantage: Dr. GRPO (arXiv 2503.20783), not divided by the deviation of the group.

python train.py --plugin examples/dr_grpo.py
"""

import torch

from credit import design_rewards


def centre(values_G_S, valid_G_S):
    count_G_1 = valid_G_S.sum(dim=1, keepdim=True).clamp(min=1)
    mean_G_1 = torch.where(valid_G_S, values_G_S, 0.0).sum(dim=1, keepdim=True) / count_G_1
    return torch.where(valid_G_S, values_G_S - mean_G_1, 0.0).float()


def designer_advantages(rewards_Q_M_N, valid_Q_M_N):
    return centre(*design_rewards(rewards_Q_M_N, valid_Q_M_N))


def executor_advantages(rewards_Q_M_N, valid_Q_M_N, group):
    Q, M, N = rewards_Q_M_N.shape
    G = Q if group == "question" else Q * M
    advantages = centre(rewards_Q_M_N.reshape(G, -1), valid_Q_M_N.reshape(G, -1))
    return advantages.reshape(Q, M, N)
