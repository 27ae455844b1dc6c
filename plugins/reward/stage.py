"""Bradley-Terry reward modelling (Ouyang et al. 2022, arXiv:2203.02155, appendix C).

Backbone and a linear head d -> 1, read at the last token of a completion, its end-of-turn token. On pairs (c, r):
    L = mean[ -log sigmoid(r_c - r_r - m) ] + centering * mean[ (r_c + r_r)^2 ]
m is the pair's margin or 0. Both completions of a pair stand in one packed row and share their prompt. After training
the mean over the chosen completions of the training set becomes the model's offset, so that they average 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from core.api import Batch, DataError, Evaluation, LossOutput
from core.torch_api import Models, PairRow, Stage, StageData, pair_rows, trainable_scorer
from plugins.reward import RewardStageConfig

_OFFSET_PAIRS = 128
"""Training pairs whose chosen completions give the offset."""


def bradley_terry_loss(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None, centering: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2 of each pair, float32 [B].

    Raises nothing; adding one constant to all rewards changes the centering term alone.
    """
    gap = chosen_B - rejected_B
    if margin_B is not None:
        gap = gap - margin_B
    return -F.logsigmoid(gap) + centering * (chosen_B + rejected_B) ** 2


def pair_rewards(models: Models, row: PairRow) -> tuple[Tensor, Tensor]:
    """Rewards of the chosen and of the rejected completions, float32 [B] each."""
    rewards = models.call("reward_model", row.packed)
    return rewards[0::2], rewards[1::2]


class Reward(Stage[RewardStageConfig, StageData, PairRow]):
    """The stage."""

    @override
    def build_data(self) -> StageData:
        """Training and held-out pairs."""
        dataset, examples = self.run.plan.dataset, self.run.examples
        heldout = [record for record in dataset.heldout if record.chosen and record.rejected]
        data = StageData(examples.pairs(dataset.train), examples.pairs(heldout))
        if self.cfg.margin and not any(pair.margin for pair in data.train):
            raise DataError(
                "stage.margin=true, but no pair has a margin", "data", "name its column with data.columns.margin=COLUMN"
            )
        return data

    @override
    def build_models(self) -> Models:
        """The reward model, from the starting weights with a new head."""
        start = self.run.start
        return Models(start, reward_model=trainable_scorer(start, self.run.parts.shape()))

    @override
    def collect_batch(self, models: Models, data: StageData, step: int) -> Batch[PairRow]:
        """The next `batch_size` pairs."""
        pairs = self.next_examples(data.train, step)
        return Batch(updates=[pair_rows(pairs, self.cfg.micro_batch_tokens)], tokens=sum(pair.tokens for pair in pairs))

    @override
    def compute_loss(self, models: Models, micro_batch: PairRow) -> LossOutput:
        """Mean Bradley-Terry loss over the step's pairs."""
        cfg = self.cfg
        chosen, rejected = pair_rewards(models, micro_batch)
        margin = micro_batch.margin_B.to(chosen.device) if cfg.margin else None
        loss = bradley_terry_loss(chosen, rejected, margin, cfg.centering).sum() / micro_batch.total
        with torch.no_grad():
            share = 1.0 / micro_batch.total
            metrics = {
                "accuracy": (chosen > rejected).float().sum().item() * share,
                "margin": (chosen - rejected).sum().item() * share,
                "reward_mean": (chosen + rejected).sum().item() * share / 2,
            }
        return LossOutput(loss, metrics)

    @override
    def evaluate(self, models: Models, data: StageData, step: int) -> Evaluation:
        """`score`: share of held-out pairs whose chosen completion gets the higher reward; `margin`: mean gap."""
        if not data.heldout:
            return Evaluation()
        flags: list[float | None] = []
        gap = 0.0
        for row in pair_rows(data.heldout, self.cfg.micro_batch_tokens):
            chosen, rejected = pair_rewards(models, row)
            flags += (chosen > rejected).float().tolist()
            gap += (chosen - rejected).sum().item()
        known = [flag for flag in flags if flag is not None]
        metrics = {"score": sum(known) / len(known), "margin": gap / len(known)}
        return Evaluation(metrics, flags, headline="held-out pair accuracy")

    @override
    def finish(self, models: Models, data: StageData) -> None:
        """The mean reward of chosen training completions becomes the offset."""
        assert models.reward_model is not None
        rewards = []
        with torch.no_grad():
            for row in pair_rows(data.train[:_OFFSET_PAIRS], self.cfg.micro_batch_tokens):
                rewards.append(pair_rewards(models, row)[0])
        models.reward_model.offset += torch.cat(rewards).mean().item()
