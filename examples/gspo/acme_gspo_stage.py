"""max(-A s, -A clip(s, 1 - low, 1 + high)), mean over completions, where s = exp(mean over a completion's tokens of
log p - log p_old), eq. 5 and 7 of the paper. A is the completion's distance from its group's mean, as in GRPO."""

from acme_gspo import GspoConfig

from core.api import LossOutput
from core.torch_api import sum_by_completion
from plugins.online import KlEstimator
from plugins.online.estimators import clipped_policy_loss, kl_estimate
from plugins.online.group import GroupStage
from plugins.online.rollouts import drift


class Gspo(GroupStage[GspoConfig]):
    def compute_loss(self, models, micro_batch):
        cfg, size = self.cfg, micro_batch.size
        known, logprob_M = self.forward(models, micro_batch)
        row = known.row

        def mean_C(value_M):
            return sum_by_completion(value_M, row.packed.completion_M, row.packed.completions) / row.lengths_C

        loss_C, ratio_C, clipped_C = clipped_policy_loss(
            mean_C(logprob_M), mean_C(row.old), row.extra["advantage_C"], cfg.clip_range, cfg.clip_range_high
        )
        kl_C = mean_C(kl_estimate(logprob_M, row.reference_logprob_M, KlEstimator.k3))
        loss = (mean_C(row.weight) * loss_C + cfg.kl_coef * kl_C).sum() / size.completions
        metrics = {
            "approx_kl": drift(row, logprob_M, size.tokens),
            "clip_frac": clipped_C.float().sum().item() / size.completions,
            "ratio_gap": (ratio_C - 1).abs().sum().item() / size.completions,
        }
        return LossOutput(loss, known.metrics | metrics, known.peaks)
