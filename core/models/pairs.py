"""Preference pairs as packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.models.packed import Packed, PromptGroup, pack
from core.tokens.examples import Pair, split_by_tokens


@dataclass
class PairRow:
    """A packed row of B pairs, chosen and rejected in turn; `total` pairs are in the whole step."""

    packed: Packed
    margin_B: Tensor
    total: int


def pair_rows(examples: Sequence[Pair], limit: int) -> list[PairRow]:
    """Pairs as packed rows of at most `limit` tokens; the two completions of a pair share their prompt."""
    return [
        PairRow(
            pack([PromptGroup(pair.prompt, [pair.chosen, pair.rejected]) for pair in part]),
            torch.tensor([pair.margin for pair in part]),
            len(examples),
        )
        for part in split_by_tokens(examples, lambda pair: pair.tokens, limit)
    ]
