"""Supervised fine-tuning.

Loss of a step: L = -(1 / W) * sum_t w_t log p(y_t | x, y_<t) over all completion tokens of the step, W = sum_t w_t.
The denominator is the whole step's, so micro-batches add up and accumulation changes nothing. Prompt tokens have no
logits computed at all. Weights are 1 on the completion and its end-of-turn token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import (
    Models,
    Packed,
    PromptGroup,
    StageData,
    StageRun,
    demonstrations,
    pack,
    score_heldout,
    split_by_tokens,
    step_items,
)


@dataclass
class WeightedTokens:
    """A micro-batch: a packed row, and for each of its M completion tokens its share of the step's loss."""

    packed: Packed
    share_M: Tensor


def weighted_micro_batches(examples: list, limit: int) -> list[WeightedTokens]:
    """Demonstrations as packed rows of at most `limit` tokens, weights normalised over all of them together."""
    rows = [
        pack([PromptGroup(example.prompt, [example.completion]) for example in part])
        for part in split_by_tokens(examples, lambda example: example.tokens, limit)
    ]
    total = sum(len(row.targets_M) for row in rows)
    return [WeightedTokens(row, torch.full((len(row.targets_M),), 1.0 / total)) for row in rows]


def weighted_nll(models: Models, micro_batch: WeightedTokens) -> Tensor:
    """Sum of share * -log p over the micro-batch, float32 []."""
    logprob_M, _ = models.call("policy", micro_batch.packed)
    return -(micro_batch.share_M.to(logprob_M.device) * logprob_M).sum()


class Sft:
    """The stage."""

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Demonstrations, and the held-out records that have a completion."""
        heldout = [record for record in run.plan.dataset.heldout if record.completion or record.chosen]
        train = demonstrations(run, run.plan.dataset.train)
        return StageData(train, demonstrations(run, heldout))

    @hookimpl
    def collect_batch(self, run: StageRun, data: StageData, step: int) -> Batch:
        """The next `batch_size` demonstrations."""
        cfg = run.cfg.stage
        examples = step_items(data.train, step, cfg.batch_size, run.seed_for("order"))
        micro_batches = weighted_micro_batches(examples, cfg.micro_batch_tokens)
        targets = sum(len(micro_batch.share_M) for micro_batch in micro_batches)
        return Batch(
            updates=[list(micro_batches)],
            tokens=sum(example.tokens for example in examples),
            metrics={"target_tokens": float(targets)},
        )

    @hookimpl
    def compute_loss(self, models: Models, micro_batch: WeightedTokens) -> LossOutput:
        """Weighted negative log-likelihood."""
        return LossOutput(weighted_nll(models, micro_batch))

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, data: StageData) -> dict[str, float]:
        """Scored completions of the held-out prompts, and `heldout_loss` in nats a token."""
        metrics = score_heldout(run, models)
        if data.heldout:
            rows = weighted_micro_batches(data.heldout, run.cfg.stage.micro_batch_tokens)
            metrics["heldout_loss"] = sum(weighted_nll(models, row).item() for row in rows)
        return metrics
