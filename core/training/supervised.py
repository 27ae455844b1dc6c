"""Weighted tokens: the one batching and the one loss of every supervised stage.

Loss of a step: L = -(1 / W) * sum_t w_t log p(y_t | y_<t) over all tokens of the step with a weight, W = sum_t |w_t|.
The denominator is the whole step's, so micro-batches add up and accumulation changes nothing. Logits are computed
only where a weight is not zero, and in chunks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.models.packed import Packed, PromptGroup, pack
from core.models.roles import Models
from core.tokens.examples import Demonstration, split_by_tokens


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
