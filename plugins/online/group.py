"""Algorithms without a critic: a group of completions of one prompt is its own baseline.

A stage extends GroupStage and writes its `compute_loss`, and its own `advantages` where they are not GRPO's. It starts
its loss with `forward`, which gives the row with advantages (`row.extra["advantage_C"]`, [C]) and the policy's
log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import TypeVar, override

from core.api import Batch, Evaluation
from core.torch_api import Models, Stage, StageData
from plugins.online import OnlineConfig
from plugins.online.estimators import group_advantages
from plugins.online.rollouts import (
    RolloutRow,
    Settled,
    Size,
    evaluate_online,
    limits,
    minibatches,
    sample_rollouts,
    settled,
    with_old_logprobs,
)

__all__ = ["GroupStage", "GroupWork"]

C = TypeVar("C", bound=OnlineConfig, default=OnlineConfig)


@dataclass(frozen=True)
class GroupWork:
    """A micro-batch: a row, and the size of its whole minibatch. Of a row whose old log-probabilities its own loss will
    give, the minibatch is the whole iteration."""

    row: RolloutRow
    size: Size


class GroupStage(Stage[C, StageData, GroupWork]):
    """Data, collection and evaluation of an algorithm with a group baseline."""

    def advantages(self, row: RolloutRow) -> tuple[Tensor, Tensor]:
        """Reward and advantage of each completion, [P, G] both. row: its old log-probabilities are known."""
        rewards_PG = row.score_C.reshape(-1, self.cfg.group_size)
        return rewards_PG, group_advantages(rewards_PG, scale=True)

    @property
    def one_update(self) -> bool:
        """Whether an iteration's only update gives the old log-probabilities by its own forward pass, and with them the
        advantages."""
        return self.cfg.minibatches * self.cfg.inner_epochs == 1

    @override
    def build_data(self) -> StageData:
        """Prompts that leave room for a completion."""
        return StageData(self.run.examples.prompts(self.run.plan.dataset.train, self.cfg.max_new_tokens))

    @override
    def collect_batch(self, models: Models, data: StageData, step: int) -> Batch[GroupWork]:
        """Rollouts, cut into updates; with their advantages where there are several updates."""
        run, cfg = self.run, self.cfg
        rollouts = sample_rollouts(run, models, self.next_examples(data.train, step), step, cfg)
        if not self.one_update:
            rollouts = with_old_logprobs(run, models, rollouts, cfg)
            size = Size.of(rollouts.rows)
            rollouts.metrics["flat_groups"] = sum(self._give_advantages(row, size) for row in rollouts.rows)
        updates = []
        for minibatch in minibatches(rollouts.rows, cfg.inner_epochs, run.seed_for("minibatches", step)):
            size = Size.of(minibatch)
            updates.append([GroupWork(row, size) for row in minibatch])
        return Batch(updates, rollouts.metrics, rollouts.tokens, rollouts.samples, **limits(cfg))

    def _give_advantages(self, row: RolloutRow, size: Size) -> float:
        """Give the row's completions their advantages. Returns its groups without any, as a share of the groups of all
        `size.completions`."""
        rewards_PG, advantages_PG = self.advantages(row)
        row.extra["advantage_C"] = advantages_PG.flatten()
        flat = int((rewards_PG.amax(dim=1) == rewards_PG.amin(dim=1)).sum())
        return flat * self.cfg.group_size / size.completions

    def forward(self, models: Models, work: GroupWork) -> tuple[Settled, Tensor]:
        """The row with old log-probabilities and advantages (`row.extra["advantage_C"]`, [C]), with its metrics where
        it has got them only now, and the policy's log-probabilities of its completion tokens, [M]."""
        first = work.row.old_logprob_M is None
        logprob, entropy = models.call("policy", work.row.packed, self.cfg.temperature, want_entropy=first)
        if not first:
            return Settled(work.row), logprob
        known = settled(work.row, logprob.detach(), entropy, work.size, self.cfg.importance_cap)
        known.metrics["flat_groups"] = self._give_advantages(known.row, work.size)
        return known, logprob

    @override
    def evaluate(self, models: Models, data: StageData, step: int) -> Evaluation:
        """Scored held-out completions, and the KL to the reference once training has begun."""
        return evaluate_online(self.run, models, step, self.cfg)
