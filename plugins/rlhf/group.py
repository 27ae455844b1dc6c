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
from plugins.rlhf.rollouts import (
    Drift,
    Iteration,
    RolloutRow,
    SampledRow,
    collect_rollouts,
    kl_on_heldout,
    sample_rollouts,
    updates_of,
)
from plugins.shared import KlEstimator
from plugins.shared.estimators import (
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
)


@dataclass
class GroupWork:
    """A row, the tokens and completions of its whole minibatch, how far the policy has moved by then, and, for a row
    whose old log-probabilities its own loss will give, the iteration."""

    row: RolloutRow | SampledRow
    tokens: int
    completions: int
    drift: Drift
    iteration: Iteration | None = None


class _Group:
    """What both share: data, collection, evaluation."""

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Prompts that leave room for a completion."""
        return StageData(prompts(run, run.plan.dataset.train, run.cfg.stage.max_new_tokens))

    @hookimpl
    def collect_batch(self, run: StageRun, models: Models, data: StageData, step: int) -> Batch:
        """Rollouts, cut into updates; with their group advantages where there are several updates."""
        cfg = run.cfg.stage
        if self.is_one_pass(run):
            sampled, batch = sample_rollouts(run, models, data, step)
            iteration = Iteration(run, sampled)
            drift = Drift(iteration.tokens)
            batch.updates.append(
                [GroupWork(row, iteration.tokens, iteration.completions, drift, iteration) for row in sampled]
            )
            return batch
        rows, batch = collect_rollouts(run, models, data, step)
        completions = sum(row.packed.completions for row in rows)
        batch.metrics["flat_groups"] = sum(self._give_advantages(cfg, row, completions) for row in rows)
        for minibatch in updates_of(rows, cfg.inner_epochs, run.seed_for("minibatches", step)):
            tokens = sum(len(row.old_logprob_M) for row in minibatch)
            of_minibatch = sum(row.packed.completions for row in minibatch)
            drift = Drift(tokens)
            batch.updates.append([GroupWork(row, tokens, of_minibatch, drift) for row in minibatch])
        return batch

    @staticmethod
    def is_one_pass(run: StageRun) -> bool:
        """Whether an iteration's only update gives the old log-probabilities by its own forward pass, and with them the
        advantages."""
        return run.cfg.stage.minibatches * run.cfg.stage.inner_epochs == 1

    def _give_advantages(self, cfg: Any, row: RolloutRow, completions: int) -> float:
        """Give the row's completions their advantages. Returns its groups without any, as a share of the groups of all
        `completions`."""
        rewards_PG = self.shaped(cfg, row).reshape(-1, cfg.group_size)
        row.extra["advantage_C"] = self.advantages(cfg, rewards_PG).flatten()
        flat = int((rewards_PG.amax(dim=1) == rewards_PG.amin(dim=1)).sum())
        return flat * cfg.group_size / completions

    def forward(self, run: StageRun, models: Models, work: GroupWork) -> tuple[RolloutRow, Tensor, dict[str, float]]:
        """The row with old log-probabilities and advantages, the policy's log-probabilities now, [M], and metrics."""
        cfg = run.cfg.stage
        if isinstance(work.row, RolloutRow):
            return work.row, models.call("policy", work.row.packed, cfg.temperature)[0], {}
        assert work.iteration is not None
        logprob, entropy = models.call("policy", work.row.packed, cfg.temperature, want_entropy=True)
        row, metrics = work.iteration.known(work.row, logprob.detach(), entropy)
        metrics["flat_groups"] = self._give_advantages(cfg, row, work.completions)
        return row, logprob, metrics

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
        row, logprob, metrics = self.forward(run, models, micro_batch)
        completion = row.packed.completion_M
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
            metrics
            | {
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
        row, logprob, metrics = self.forward(run, models, micro_batch)
        count, completion = row.packed.completions, row.packed.completion_M
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
            metrics
            | {
                "approx_kl": micro_batch.drift.add(run, row, logprob),
                "clip_frac": clipped.float().sum().item() * share,
                "ratio_gap": (ratio - 1).abs().sum().item() * share,
            },
        )
