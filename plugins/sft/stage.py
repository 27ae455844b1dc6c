"""Supervised fine-tuning: the weighted negative log-likelihood of demonstrations.

    L = -(1 / W) * sum_t w_t log p(y_t | y_<t)   over all tokens of the step with a weight, W = sum_t |w_t|

`train_on`, `role_weights` and the data say what a token weighs: with the defaults 1 on the completion and its
end-of-turn token, 0 on the prompt. The denominator is the whole step's, so micro-batches add up and accumulation
changes nothing.
Logits are computed only where a weight is not zero, and in chunks.

Every supervised stage stands on this file: `instruct` changes the records, `s3ft` chooses the targets; `domain`, `cft`
and `nlft` make examples of their own and use the rows and the loss.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from core.api import Batch, Evaluation, LossOutput, Record
from core.torch_api import (
    Demonstration,
    Models,
    Packed,
    PromptGroup,
    Stage,
    StageData,
    Supervision,
    check_trained,
    pack,
    score_heldout,
    split_by_tokens,
)
from plugins.sft import SftConfig

__all__ = ["Sft", "WeightedRow", "neftune_noise", "weighted_nll", "weighted_rows"]

C = TypeVar("C", bound=SftConfig, default=SftConfig)
D = TypeVar("D", bound=StageData, default=StageData)

# 1. Rows and loss.


@dataclass
class WeightedRow:
    """A micro-batch: a packed row, and for each of its M trained tokens its share of the step's loss."""

    packed: Packed
    share_M: Tensor


def weighted_rows(examples: Sequence[Demonstration], limit: int) -> list[WeightedRow]:
    """Examples as packed rows of at most `limit` tokens, weights normalised over all of them together.

    Raises ValueError when no token has a weight.
    """
    total = sum(sum(map(abs, example.weights)) for example in examples)
    if total == 0:
        raise ValueError("no token of the step has a weight")
    return [_row(part, total) for part in split_by_tokens(examples, lambda example: example.tokens, limit)]


def _row(examples: Sequence[Demonstration], total: float) -> WeightedRow:
    groups: list[PromptGroup] = []
    weights = array("f")
    for example in examples:
        first = next(compress(count(), example.weights), 1)
        groups.append(PromptGroup(example.ids[:first], [example.ids[first:]]))
        weights.extend(example.weights[first:])
    weight_M = torch.from_numpy(np.array(weights))
    kept = weight_M != 0
    return WeightedRow(pack(groups).keep(kept), weight_M[kept] / total)


def weighted_nll(
    models: Models, row: WeightedRow, role: str = "policy", *, neftune_alpha: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Sum of share * -log p over the row, float32 [].

    neftune_alpha: size of the noise on the input embeddings; 0 is none. For training, never for an evaluation.
    label_smoothing: share of the target that is spread evenly over the vocabulary.
    """
    extra: dict[str, Any] = {"smoothing": label_smoothing} if label_smoothing else {}
    if neftune_alpha:
        extra["noise_Td"] = neftune_noise(row.packed, models.by_role()[role], neftune_alpha)
    logprob_M, _ = models.call(role, row.packed, **extra)
    return -(row.share_M.to(logprob_M.device) * logprob_M).sum()


def neftune_noise(packed: Packed, model: Any, alpha: float) -> Tensor:
    """Uniform noise in [-alpha / sqrt(L * d), alpha / sqrt(L * d)], float32 [T, d] (NEFTune, Jain et al. 2023,
    arXiv:2310.05914, algorithm 1).

    L is the true length of the sequence that a token belongs to, as in the authors' experiments; the padded length,
    which common ports take, would make the noise depend on the neighbours in a batch. Drawn from torch's generator.
    """
    width = model.base.get_input_embeddings().weight.shape[1]
    bound_T = alpha / (packed.sequence_lengths().to(model.device).float() * width).sqrt()
    noise_Td = torch.empty(packed.tokens, width, device=model.device).uniform_(-1.0, 1.0)
    return noise_Td * bound_T[:, None]


# 2. The stage.


class Sft(Stage[C, D, WeightedRow]):
    """Demonstrations in, weighted negative log-likelihood out. A subclass may change the records first."""

    def records(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records to be trained on, or held out."""
        return records

    def examples(self, records: Sequence[Record]) -> Sequence[Demonstration]:
        """Demonstrations, their tokens weighted as the settings say."""
        choice = Supervision(self.cfg.train_on, self.cfg.role_weights, self.cfg.too_long)
        return self.run.examples.demonstrations(self.records(records), choice)

    @override
    def build_data(self) -> D:
        """Demonstrations, and the held-out records that have a completion. Refuses what would train nothing."""
        dataset = self.run.plan.dataset
        held = [record for record in dataset.heldout if record.completion or record.calls or record.chosen]
        train = self.examples(dataset.train)
        check_trained(train, self.run.codec.eos)
        return StageData(train, self.examples(held))  # type: ignore[return-value]

    @override
    def collect_batch(self, models: Models, data: D, step: int) -> Batch[WeightedRow]:
        """The next `batch_size` demonstrations."""
        examples = self.next_examples(data.train, step)
        return Batch(
            updates=[weighted_rows(examples, self.cfg.micro_batch_tokens)],
            tokens=sum(example.tokens for example in examples),
            metrics={"target_tokens": float(sum(example.trained for example in examples))},
        )

    @override
    def compute_loss(self, models: Models, micro_batch: WeightedRow) -> LossOutput:
        """Weighted negative log-likelihood."""
        cfg = self.cfg
        return LossOutput(
            weighted_nll(models, micro_batch, neftune_alpha=cfg.neftune_alpha, label_smoothing=cfg.label_smoothing)
        )

    @override
    def evaluate(self, models: Models, data: D, step: int) -> Evaluation:
        """Scored completions of the held-out prompts; `heldout_loss` in nats a weighted token, without noise or
        smoothing, and that of each source where there are several."""
        found = score_heldout(self.run, models)
        by_source: dict[str, list[Demonstration]] = defaultdict(list)
        for example in data.heldout:
            by_source[example.source].append(example)
        whole, weight = 0.0, 0.0
        for source, examples in sorted(by_source.items()):
            rows = weighted_rows(examples, self.cfg.micro_batch_tokens)
            loss = sum(weighted_nll(models, row).item() for row in rows)
            mass = sum(abs(value) for example in examples for value in example.weights)
            whole, weight = whole + loss * mass, weight + mass
            if len(by_source) > 1:
                found.metrics[f"heldout_loss/{source or 'unnamed'}"] = loss
        if weight:
            found.metrics["heldout_loss"] = whole / weight
        return found
