"""Supervised fine-tuning: the weighted loss of core.supervised on demonstrations."""

from __future__ import annotations

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import (
    Models,
    StageData,
    StageRun,
    WeightedRow,
    demonstrations,
    score_heldout,
    step_items,
    weighted_nll,
    weighted_rows,
)


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
        examples = step_items(data.train, step, cfg.batch_size, run.seed_for("order"), cfg.order)
        return Batch(
            updates=[list(weighted_rows(examples, cfg.micro_batch_tokens))],
            tokens=sum(example.tokens for example in examples),
            metrics={"target_tokens": float(sum(example.trained for example in examples))},
        )

    @hookimpl
    def compute_loss(self, models: Models, micro_batch: WeightedRow) -> LossOutput:
        """Weighted negative log-likelihood."""
        return LossOutput(weighted_nll(models, micro_batch))

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, data: StageData) -> dict[str, float]:
        """Scored completions of the held-out prompts, and `heldout_loss` in nats a token."""
        metrics = score_heldout(run, models)
        if data.heldout:
            rows = weighted_rows(data.heldout, run.cfg.stage.micro_batch_tokens)
            metrics["heldout_loss"] = sum(weighted_nll(models, row).item() for row in rows)
        return metrics
