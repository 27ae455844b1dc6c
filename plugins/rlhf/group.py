"""GRPO (Shao et al. 2024, arXiv:2402.03300) and RLOO (Ahmadian et al. 2024, arXiv:2402.14740).

Both sample a group of completions for each prompt and use the group itself as the baseline; there is no critic.
GRPO: A = (R - mean) / (std + 1e-4) for every token of a completion; clipped ratio a token; k3 penalty in the loss.
RLOO: the sequence KL (k1) is subtracted from the reward; A = R - mean of the others; ratio and clip of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import Models, StageData, StageRun, prompts, score_heldout, sum_by_completion
from plugins.rlhf.rollouts import Drift, RolloutRow, collect_rollouts, kl_on_heldout, updates_of
from plugins.shared import KlEstimator
from plugins.shared.estimators import (
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
)


@dataclass
class GroupWork:
    """A row, the tokens and completions of its whole minibatch, and how far the policy has moved by then."""

    row: RolloutRow
    tokens: int
    completions: int
    drift: Drift


class _Group:
    """What both share: data, collection, evaluation."""

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Prompts that leave room for a completion."""
        return StageData(prompts(run, run.plan.dataset.train, run.cfg.stage.max_new_tokens))

    @hookimpl
    def collect_batch(self, run: StageRun, models: Models, data: StageData, step: int) -> Batch:
        """Rollouts with their group advantages, cut into updates."""
        cfg = run.cfg.stage
        rows, batch = collect_rollouts(run, models, data, step)
        flat = 0
        for row in rows:
            rewards_PG = self.shaped(cfg, row).reshape(-1, cfg.group_size)
            flat += int((rewards_PG.amax(dim=1) == rewards_PG.amin(dim=1)).sum())
            row.extra["advantage_C"] = self.advantages(cfg, rewards_PG).flatten()
        batch.metrics["flat_groups"] = flat / max(sum(row.packed.completions for row in rows) // cfg.group_size, 1)
        for minibatch in updates_of(rows, cfg.inner_epochs, run.seed_for("minibatches", step)):
            tokens = sum(len(row.old_logprob_M) for row in minibatch)
            completions = sum(row.packed.completions for row in minibatch)
            drift = Drift(tokens)
            batch.updates.append([GroupWork(row, tokens, completions, drift) for row in minibatch])
        return batch

    def shaped(self, cfg: Any, row: RolloutRow) -> Tensor:
        """Reward of each completion, [C]."""
        del cfg
        return row.score_C

    def advantages(self, cfg: Any, rewards_PG: Tensor) -> Tensor:
        """Advantage of each completion, [P, G]."""
        return group_advantages(rewards_PG, cfg.scale_by_std)

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, step: int) -> dict[str, float]:
        """Scored held-out completions, and the KL to the reference once training has begun."""
        metrics = score_heldout(run, models)
        return {**metrics, **kl_on_heldout(run, models)} if step else metrics


class Grpo(_Group):
    """Token-level ratio, k3 penalty in the loss."""

    @hookimpl
    def compute_loss(self, run: StageRun, models: Models, micro_batch: GroupWork) -> LossOutput:
        """Mean of the clipped objective plus kl_coef * k3, averaged as `aggregation` says."""
        cfg = run.cfg.stage
        row, completion = micro_batch.row, micro_batch.row.packed.completion_M
        logprob, _ = models.call("policy", row.packed, cfg.temperature)
        advantage = row.extra["advantage_C"][completion]
        high = cfg.clip_range if cfg.clip_range_high is None else cfg.clip_range_high
        per_token, ratio, clipped = clipped_policy_loss(logprob, row.old_logprob_M, advantage, cfg.clip_range, high)
        per_token = row.weight_M * per_token
        if cfg.kl_coef:
            per_token = per_token + cfg.kl_coef * kl_estimate(logprob, row.reference_logprob_M, KlEstimator.k3)
        if cfg.aggregation.value == "grpo":
            share = 1.0 / (row.lengths_C[completion] * micro_batch.completions)
        elif cfg.aggregation.value == "dapo":
            share = torch.full_like(per_token, 1.0 / micro_batch.tokens)
        else:
            share = torch.full_like(per_token, 1.0 / (micro_batch.completions * cfg.max_new_tokens))
        return LossOutput(
            (share * per_token).sum(),
            {
                "approx_kl": micro_batch.drift.add(run, row, logprob),
                "clip_frac": clipped.float().sum().item() / micro_batch.tokens,
                "ratio_gap": (ratio - 1).abs().sum().item() / micro_batch.tokens,
            },
        )


class Rloo(_Group):
    """Sequence-level ratio, KL inside the reward."""

    def shaped(self, cfg: Any, row: RolloutRow) -> Tensor:
        """Score minus kl_coef times the sequence's k1."""
        kl = kl_estimate(row.old_logprob_M, row.reference_logprob_M, KlEstimator.k1)
        return row.score_C - cfg.kl_coef * sum_by_completion(kl, row.packed.completion_M, row.packed.completions)

    def advantages(self, cfg: Any, rewards_PG: Tensor) -> Tensor:
        """Leave-one-out baseline."""
        del cfg
        return leave_one_out_advantages(rewards_PG)

    @hookimpl
    def compute_loss(self, run: StageRun, models: Models, micro_batch: GroupWork) -> LossOutput:
        """Mean over completions of the clipped sequence objective."""
        cfg = run.cfg.stage
        row = micro_batch.row
        count, completion = row.packed.completions, row.packed.completion_M
        logprob, _ = models.call("policy", row.packed, cfg.temperature)
        policy_C = sum_by_completion(logprob, completion, count)
        old_C = sum_by_completion(row.old_logprob_M, completion, count)
        per_sequence, ratio, clipped = clipped_policy_loss(
            policy_C, old_C, row.extra["advantage_C"], cfg.clip_range, cfg.clip_range
        )
        # The importance weight of a sequence is the mean of its tokens': a product would let one token rule.
        weight_C = sum_by_completion(row.weight_M, completion, count) / row.lengths_C
        share = 1.0 / micro_batch.completions
        return LossOutput(
            (weight_C * per_sequence).sum() * share,
            {
                "approx_kl": micro_batch.drift.add(run, row, logprob),
                "clip_frac": clipped.float().sum().item() * share,
                "ratio_gap": (ratio - 1).abs().sum().item() * share,
            },
        )
