"""The DPO family: dpo, cdpo, robust, ipo (formulas in plugins.shared.estimators.pairwise_loss).

Chosen and rejected of a pair stand in one packed row and share their prompt; prompt tokens never enter the loss. The
reference is the frozen start, or the policy with its adapter off. Dropout is off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import (
    Models,
    Packed,
    PairRow,
    StageData,
    StageRun,
    pair_rows,
    pairs,
    score_heldout,
    step_items,
    sum_by_completion,
)
from plugins.shared.estimators import pairwise_loss


def completion_logprobs(logprob_M: Tensor, packed: Packed, average: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected completions, summed over their tokens or averaged, [B] each."""
    sums = sum_by_completion(logprob_M, packed.completion_M.to(logprob_M.device), packed.completions)
    if average:
        sums = sums / torch.bincount(packed.completion_M, minlength=packed.completions).to(sums.device)
    return sums[0::2], sums[1::2]


class Pairwise:
    """The stage; which loss is chosen by `stage.algorithm`."""

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Training and held-out pairs."""
        heldout = [record for record in run.plan.dataset.heldout if record.chosen and record.rejected]
        return StageData(pairs(run, run.plan.dataset.train), pairs(run, heldout))

    @hookimpl
    def collect_batch(self, run: StageRun, data: StageData, step: int) -> Batch:
        """The next `batch_size` pairs."""
        cfg = run.cfg.stage
        examples = step_items(data.train, step, cfg.batch_size, run.seed_for("order"), cfg.order)
        return Batch([list(pair_rows(examples, cfg.micro_batch_tokens))], tokens=sum(pair.tokens for pair in examples))

    @hookimpl
    def compute_loss(self, run: StageRun, models: Models, micro_batch: PairRow) -> LossOutput:
        """Mean loss over the step's pairs."""
        loss_B, metrics = self._losses(run, models, micro_batch)
        share = 1.0 / micro_batch.total
        return LossOutput(loss_B.sum() * share, {name: value.sum().item() * share for name, value in metrics.items()})

    @staticmethod
    def _losses(run: StageRun, models: Models, row: PairRow) -> tuple[Tensor, dict[str, Tensor]]:
        cfg = run.cfg.stage
        average = getattr(cfg, "average", False)
        reference_M = models.reference_logprobs(row.packed)
        logprob_M, _ = models.call("policy", row.packed)
        chosen, rejected = completion_logprobs(logprob_M, row.packed, average)
        reference_chosen, reference_rejected = completion_logprobs(reference_M, row.packed, average)
        loss_B = pairwise_loss(
            cfg.algorithm, chosen - rejected, reference_chosen - reference_rejected, cfg.beta,
            getattr(cfg, "label_smoothing", 0.0),
        )  # fmt: skip
        with torch.no_grad():
            better, worse = cfg.beta * (chosen - reference_chosen), cfg.beta * (rejected - reference_rejected)
            metrics = {
                "accuracy": (better > worse).float(),
                "margin": better - worse,
                "implicit_reward_chosen": better,
                "implicit_reward_rejected": worse,
                # Likelihood displacement shows here: the margin may rise while this falls.
                "chosen_logprob": chosen,
            }
        return loss_B, metrics

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, data: StageData) -> dict[str, float]:
        """Scored held-out completions where records have prompts; loss, accuracy and margin on held-out pairs."""
        metrics = score_heldout(run, models)
        if data.heldout:
            totals: dict[str, float] = {}
            flags: list[float | None] = []
            for row in pair_rows(data.heldout, run.cfg.stage.micro_batch_tokens):
                loss_B, values = self._losses(run, models, row)
                totals["heldout_loss"] = totals.get("heldout_loss", 0.0) + loss_B.sum().item() / row.total
                for name in ("accuracy", "margin"):
                    totals[f"pair_{name}"] = totals.get(f"pair_{name}", 0.0) + values[name].sum().item() / row.total
                flags += values["accuracy"].tolist()
            metrics |= totals
            if "score" not in metrics and "reward" not in metrics:
                run.eval_metric, run.eval_items = "held-out pair accuracy", flags
                metrics["score"] = totals["pair_accuracy"]
        return metrics
