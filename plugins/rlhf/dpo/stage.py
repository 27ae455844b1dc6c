"""The DPO family: dpo, cdpo, robust, ipo.

With h = [log p(chosen) - log p(rejected)] under the policy, less the same under the reference, log-probabilities summed
over completion tokens:
- dpo:    -log sigmoid(beta h)                                                  Rafailov et al. 2023, arXiv:2305.18290
- cdpo:   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)                 Mitchell 2023
- robust: [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)    Chowdhury 2024, arXiv:2403.00409
- ipo:    (h - 1 / (2 beta))^2, h of means over tokens, as its authors do       Azar et al. 2023, arXiv:2310.12036

Chosen and rejected of a pair stand in one packed row and share their prompt; prompt tokens never enter the loss. The
reference is the frozen start, or the policy with its adapter off. Dropout is off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypeVar, override

from core.api import Batch, Evaluation, LossOutput
from core.torch_api import (
    Models,
    Packed,
    PairRow,
    Stage,
    StageData,
    StageRun,
    pair_rows,
    score_heldout,
    sum_by_completion,
)
from plugins.rlhf.dpo import DpoConfig, IpoConfig, SmoothedConfig

C = TypeVar("C", bound=DpoConfig, default=DpoConfig)


def dpo_loss(h: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta h), elementwise over pairs [B]."""
    return -F.logsigmoid(beta * h)


def cdpo_loss(h: Tensor, beta: float, smoothing: float) -> Tensor:
    """DPO on labels that are wrong with probability `smoothing`, elementwise over pairs [B]."""
    return -(1.0 - smoothing) * F.logsigmoid(beta * h) - smoothing * F.logsigmoid(-beta * h)


def robust_loss(h: Tensor, beta: float, smoothing: float) -> Tensor:
    """What gives DPO's loss on true labels in expectation, elementwise over pairs [B]."""
    right, wrong = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (-(1.0 - smoothing) * right + smoothing * wrong) / (1.0 - 2.0 * smoothing)


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, elementwise over pairs [B]."""
    return (h - 1.0 / (2.0 * beta)) ** 2


def completion_logprobs(logprob_M: Tensor, packed: Packed, average: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected completions, summed over their tokens or averaged, [B] each."""
    sums = sum_by_completion(logprob_M, packed.completion_M.to(logprob_M.device), packed.completions)
    if average:
        sums = sums / torch.bincount(packed.completion_M, minlength=packed.completions).to(sums.device)
    return sums[0::2], sums[1::2]


class Dpo(Stage[C, StageData, PairRow]):
    """The stage; a relative changes its loss alone."""

    average = False
    """Whether log-probabilities are averaged over tokens."""

    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of each pair, [B], from the gap of its log-probabilities to the reference's."""
        return dpo_loss(h, self.cfg.beta)

    @override
    def build_data(self) -> StageData:
        """Training and held-out pairs."""
        dataset = self.run.plan.dataset
        heldout = [record for record in dataset.heldout if record.chosen and record.rejected]
        return StageData(self.run.examples.pairs(dataset.train), self.run.examples.pairs(heldout))

    @override
    def collect_batch(self, models: Models, data: StageData, step: int) -> Batch[PairRow]:
        """The next `batch_size` pairs."""
        pairs = self.next_examples(data.train, step)
        return Batch([pair_rows(pairs, self.cfg.micro_batch_tokens)], tokens=sum(pair.tokens for pair in pairs))

    @override
    def compute_loss(self, models: Models, micro_batch: PairRow) -> LossOutput:
        """Mean loss over the step's pairs."""
        loss_B, metrics = self._losses(models, micro_batch)
        share = 1.0 / micro_batch.total
        return LossOutput(loss_B.sum() * share, {name: value.sum().item() * share for name, value in metrics.items()})

    def _losses(self, models: Models, row: PairRow) -> tuple[Tensor, dict[str, Tensor]]:
        reference_M = models.reference_logprobs(row.packed)
        logprob_M, _ = models.call("policy", row.packed)
        chosen, rejected = completion_logprobs(logprob_M, row.packed, self.average)
        reference_chosen, reference_rejected = completion_logprobs(reference_M, row.packed, self.average)
        loss_B = self.pair_loss((chosen - rejected) - (reference_chosen - reference_rejected))
        with torch.no_grad():
            beta = self.cfg.beta
            better, worse = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
            metrics = {
                "accuracy": (better > worse).float(),
                "margin": better - worse,
                "implicit_reward_chosen": better,
                "implicit_reward_rejected": worse,
                # Likelihood displacement shows here: the margin may rise while this falls.
                "chosen_logprob": chosen,
            }
        return loss_B, metrics

    @override
    def evaluate(self, models: Models, data: StageData, step: int) -> Evaluation:
        """Scored held-out completions where records have prompts; loss, accuracy and margin on held-out pairs."""
        found = score_heldout(self.run, models)
        if not data.heldout:
            return found
        totals: dict[str, float] = {}
        flags: list[float | None] = []
        for row in pair_rows(data.heldout, self.cfg.micro_batch_tokens):
            loss_B, values = self._losses(models, row)
            totals["heldout_loss"] = totals.get("heldout_loss", 0.0) + loss_B.sum().item() / row.total
            for name in ("accuracy", "margin"):
                totals[f"pair_{name}"] = totals.get(f"pair_{name}", 0.0) + values[name].sum().item() / row.total
            flags += values["accuracy"].tolist()
        found.metrics |= totals
        if "score" not in found.metrics and "reward" not in found.metrics:
            found.headline, found.items = "held-out pair accuracy", flags
            found.metrics["score"] = totals["pair_accuracy"]
        return found


class Cdpo(Dpo[SmoothedConfig]):
    """DPO with conservative labels."""

    @override
    def pair_loss(self, h: Tensor) -> Tensor:
        return cdpo_loss(h, self.cfg.beta, self.cfg.label_smoothing)


class Robust(Dpo[SmoothedConfig]):
    """DPO unbiased under label noise."""

    @override
    def pair_loss(self, h: Tensor) -> Tensor:
        return robust_loss(h, self.cfg.beta, self.cfg.label_smoothing)


class Ipo(Dpo[IpoConfig]):
    """Identity preference optimisation."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.average = self.cfg.average

    @override
    def pair_loss(self, h: Tensor) -> Tensor:
        return ipo_loss(h, self.cfg.beta)
