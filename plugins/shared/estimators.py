"""KL estimators, generalised advantage estimation, whitening, clipped objectives, group baselines.

Shapes: [C, T] is completions by completion tokens, padded on the right, with a boolean mask of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from plugins.shared import KlEstimator


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


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is set, []; 0 where it is set nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    """(values - mean) / sqrt(var + 1e-8) over the masked entries, zero elsewhere; the variance is that of the entries
    themselves (divided by their count), as in the code of Ziegler et al. 2019.

    keep_mean adds the mean back, as is done for rewards.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    out = (values - mean) * torch.rsqrt(variance + 1e-8)
    if keep_mean:
        out = out + mean
    return out * mask


def generalized_advantages(
    rewards_CT: Tensor, values_CT: Tensor, mask_CT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al. 2016, arXiv:1506.02438, eq. 11-16): advantages and returns, [C, T] each, zero off the mask.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  the value after the end is 0.
    """
    mask = mask_CT.to(rewards_CT.dtype)
    values = values_CT * mask
    advantages = torch.zeros_like(rewards_CT)
    following = torch.zeros_like(rewards_CT[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards_CT.shape[1])):
        delta = rewards_CT[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, (advantages + values) * mask


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


def clipped_value_loss(value: Tensor, old_value: Tensor, return_: Tensor, clip_range: float) -> Tensor:
    """0.5 * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), elementwise; c = 0 leaves out the clipping."""
    plain = (value - return_) ** 2
    if clip_range <= 0:
        return 0.5 * plain
    held = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum(plain, (held - return_) ** 2)


def adaptive_coefficient(coefficient: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """Next KL coefficient (Ziegler et al. 2019): c * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def group_advantages(rewards_PG: Tensor, scale: bool) -> Tensor:
    """GRPO (arXiv:2402.03300): (R - mean) / (std + 1e-4) within each group of G, sample std; no division without
    `scale` (Dr. GRPO). [P, G]."""
    centred = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if not scale:
        return centred
    return centred / (rewards_PG.std(dim=1, keepdim=True) + 1e-4)


def leave_one_out_advantages(rewards_PG: Tensor) -> Tensor:
    """RLOO (arXiv:2402.14740): R_i minus the mean of the other G - 1 of its group, [P, G]."""
    group = rewards_PG.shape[1]
    return rewards_PG - (rewards_PG.sum(dim=1, keepdim=True) - rewards_PG) / (group - 1)


def pairwise_loss(kind: str, policy_gap: Tensor, reference_gap: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Losses of the DPO family, elementwise over pairs [B].

    policy_gap, reference_gap: log p(chosen) - log p(rejected), summed over completion tokens (for `ipo`: the average
    a token of each, as in the authors' practice). h is their difference.
    - dpo:    -log sigmoid(beta h)                                            Rafailov et al. 2023, arXiv:2305.18290
    - cdpo:   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)           Mitchell 2023
    - robust: [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)   arXiv:2403.00409
    - ipo:    (h - 1 / (2 beta))^2                                            Azar et al. 2023, arXiv:2310.12036
    """
    h = policy_gap - reference_gap
    if kind == "ipo":
        return (h - 1.0 / (2.0 * beta)) ** 2
    right, wrong = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    if kind == "robust":
        return (-(1.0 - smoothing) * right + smoothing * wrong) / (1.0 - 2.0 * smoothing)
    return -(1.0 - smoothing) * right - smoothing * wrong
