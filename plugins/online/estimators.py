"""KL estimators, the clipped objective, the group baseline: formulas that several algorithms share, each tested against
published numbers and a plain loop.

Suffixes: [M] completion tokens of a row, [C] completions, [P, G] prompts by group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.online import KlEstimator

__all__ = ["clipped_policy_loss", "group_advantages", "kl_estimate"]


def kl_estimate(logprob: Tensor, reference_logprob: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate in nats, shape of the inputs.

    k1 = d: unbiased, signed. k2 = d^2 / 2: biased, low variance. k3 = exp(-d) - 1 + d: unbiased, never negative
    (Schulman 2020, "Approximating KL divergence").
    """
    d = logprob - reference_logprob
    if estimator is KlEstimator.k1:
        return d
    if estimator is KlEstimator.k2:
        return 0.5 * d**2
    return torch.expm1(-d) + d


def clipped_policy_loss(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's pessimistic objective (Schulman et al. 2017, arXiv:1707.06347, eq. 7): loss, ratio and clipped flag.

    loss = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), elementwise.
    """
    ratio = torch.exp(logprob - old_logprob)
    plain = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), ratio.detach(), (clipped > plain).detach()


def group_advantages(rewards_PG: Tensor, scale: bool) -> Tensor:
    """GRPO (arXiv:2402.03300): (R - mean) / (std + 1e-4) within each group of G, sample std; no division without
    `scale` (Dr. GRPO). [P, G]."""
    centred = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if not scale:
        return centred
    return centred / (rewards_PG.std(dim=1, keepdim=True) + 1e-4)
