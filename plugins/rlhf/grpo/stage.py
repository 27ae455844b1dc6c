"""GRPO (Shao et al. 2024, arXiv:2402.03300), with DAPO's and Dr. GRPO's variations as settings.

A group of G completions is sampled for each prompt, and is its own baseline: A = (R - mean) / (std + 1e-4), the same
for every token of a completion. With the ratio r_t of the policy to the one that sampled, a token's loss is

    max(-A r_t, -A clip(r_t, 1 - low, 1 + high)) + kl_coef * k3_t

averaged as `aggregation` says. Rollouts and groups are those of plugins.online.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from core.api import LossOutput
from core.torch_api import Models
from plugins.online import KlEstimator
from plugins.online.estimators import clipped_policy_loss, group_advantages, kl_estimate
from plugins.online.group import GroupStage, GroupWork
from plugins.online.rollouts import RolloutRow, drift
from plugins.rlhf.grpo import Aggregation, GrpoConfig


class Grpo(GroupStage[GrpoConfig]):
    """Token-level ratio, k3 penalty in the loss."""

    @override
    def advantages(self, row: RolloutRow) -> tuple[Tensor, Tensor]:
        """Scores, and their distance from the group's mean, over its standard deviation where `scale_by_std`."""
        rewards_PG = row.score_C.reshape(-1, self.cfg.group_size)
        return rewards_PG, group_advantages(rewards_PG, self.cfg.scale_by_std)

    @override
    def compute_loss(self, models: Models, micro_batch: GroupWork) -> LossOutput:
        """Mean of the clipped objective plus kl_coef * k3, averaged as `aggregation` says."""
        cfg, size = self.cfg, micro_batch.size
        known, logprob = self.forward(models, micro_batch)
        row = known.row
        completion = row.packed.completion_M
        advantage = row.extra["advantage_C"][completion]
        high = cfg.clip_range if cfg.clip_range_high is None else cfg.clip_range_high
        per_token, ratio, clipped = clipped_policy_loss(logprob, row.old, advantage, cfg.clip_range, high)
        per_token = row.weight * per_token
        if cfg.kl_coef:
            per_token = per_token + cfg.kl_coef * kl_estimate(logprob, row.reference_logprob_M, KlEstimator.k3)
        if cfg.aggregation is Aggregation.grpo:
            share = 1.0 / (row.lengths_C[completion] * size.completions)
        elif cfg.aggregation is Aggregation.dapo:
            share = torch.full_like(per_token, 1.0 / size.tokens)
        else:
            share = torch.full_like(per_token, 1.0 / (size.completions * cfg.max_new_tokens))
        metrics = {
            "approx_kl": drift(row, logprob, size.tokens),
            "clip_frac": clipped.float().sum().item() / size.tokens,
            "ratio_gap": (ratio - 1).abs().sum().item() / size.tokens,
        }
        return LossOutput((share * per_token).sum(), known.metrics | metrics, known.peaks)
