"""RLOO (Ahmadian et al. 2024, arXiv:2402.14740).

The sequence's KL (k1) is subtracted from the reward; the baseline of a completion is the mean of the others of its
group: A_i = R_i - mean_{j != i} R_j. Ratio and clip are those of the whole sequence:

    max(-A r, -A clip(r, 1 - c, 1 + c)),  r = prod_t r_t

Rollouts and groups are those of plugins.online.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from core.api import LossOutput
from core.torch_api import Models, sum_by_completion
from plugins.online import KlEstimator
from plugins.online.estimators import clipped_policy_loss, kl_estimate
from plugins.online.group import GroupStage, GroupWork
from plugins.online.rollouts import RolloutRow, drift
from plugins.rlhf.rloo import RlooConfig


def leave_one_out_advantages(rewards_PG: Tensor) -> Tensor:
    """RLOO (arXiv:2402.14740): R_i minus the mean of the other G - 1 of its group, [P, G]."""
    group = rewards_PG.shape[1]
    return rewards_PG - (rewards_PG.sum(dim=1, keepdim=True) - rewards_PG) / (group - 1)


class Rloo(GroupStage[RlooConfig]):
    """Sequence-level ratio, KL inside the reward."""

    @override
    def advantages(self, row: RolloutRow) -> tuple[Tensor, Tensor]:
        """Score minus kl_coef times the sequence's k1, and its distance from the mean of the others."""
        kl_M = kl_estimate(row.old, row.reference_logprob_M, KlEstimator.k1)
        kl_C = sum_by_completion(kl_M, row.packed.completion_M, row.packed.completions)
        rewards_PG = (row.score_C - self.cfg.kl_coef * kl_C).reshape(-1, self.cfg.group_size)
        return rewards_PG, leave_one_out_advantages(rewards_PG)

    @override
    def compute_loss(self, models: Models, micro_batch: GroupWork) -> LossOutput:
        """Mean over completions of the clipped sequence objective."""
        cfg, size = self.cfg, micro_batch.size
        known, logprob = self.forward(models, micro_batch)
        row = known.row
        count, completion = row.packed.completions, row.packed.completion_M
        policy_C = sum_by_completion(logprob, completion, count)
        old_C = sum_by_completion(row.old, completion, count)
        per_sequence, ratio, clipped = clipped_policy_loss(
            policy_C, old_C, row.extra["advantage_C"], cfg.clip_range, cfg.clip_range
        )
        # The importance weight of a sequence is the mean of its tokens': a product would let one token rule.
        weight_C = sum_by_completion(row.weight, completion, count) / row.lengths_C
        share = 1.0 / size.completions
        metrics = {
            "approx_kl": drift(row, logprob, size.tokens),
            "clip_frac": clipped.float().sum().item() * share,
            "ratio_gap": (ratio - 1).abs().sum().item() * share,
        }
        return LossOutput((weight_C * per_sequence).sum() * share, known.metrics | metrics, known.peaks)
