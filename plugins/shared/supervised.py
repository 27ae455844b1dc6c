"""The stage hooks of supervised training with weighted tokens, whatever the records were made into before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from core.api import Batch, LossOutput, Record, hookimpl
from core.torch_api import (
    Demonstration,
    Models,
    StageData,
    StageRun,
    Supervision,
    WeightedRow,
    check_trained,
    demonstrations,
    score_heldout,
    step_items,
    weighted_nll,
    weighted_rows,
)


class SupervisedStage:
    """Demonstrations in, weighted negative log-likelihood out. A subclass may change the records first."""

    def records(self, run: StageRun, records: Sequence[Record]) -> Sequence[Record]:
        """The records to be trained on."""
        del run
        return records

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Demonstrations, and the held-out records that have a completion. Refuses what would train nothing."""
        cfg = run.cfg.stage
        choice = Supervision(cfg.train_on, cfg.role_weights, cfg.too_long)
        held = [record for record in run.plan.dataset.heldout if record.completion or record.calls or record.chosen]
        train = demonstrations(run, self.records(run, run.plan.dataset.train), choice)
        check_trained(train, run.codec.eos)
        return StageData(train, demonstrations(run, self.records(run, held), choice))

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
    def compute_loss(self, run: StageRun, models: Models, micro_batch: WeightedRow) -> LossOutput:
        """Weighted negative log-likelihood."""
        cfg = run.cfg.stage
        return LossOutput(
            weighted_nll(models, micro_batch, neftune_alpha=cfg.neftune_alpha, label_smoothing=cfg.label_smoothing)
        )

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, data: StageData) -> dict[str, float]:
        """Scored completions of the held-out prompts; `heldout_loss` in nats a weighted token, without noise or
        smoothing, and that of each source where there are several."""
        metrics = score_heldout(run, models)
        by_source: dict[str, list[Demonstration]] = defaultdict(list)
        for example in data.heldout:
            by_source[example.source].append(example)
        whole, weight = 0.0, 0.0
        for source, examples in sorted(by_source.items()):
            rows = weighted_rows(examples, run.cfg.stage.micro_batch_tokens)
            loss = sum(weighted_nll(models, row).item() for row in rows)
            mass = sum(abs(value) for example in examples for value in example.weights)
            whole, weight = whole + loss * mass, weight + mass
            if len(by_source) > 1:
                metrics[f"heldout_loss/{source or 'unnamed'}"] = loss
        if weight:
            metrics["heldout_loss"] = whole / weight
        return metrics
