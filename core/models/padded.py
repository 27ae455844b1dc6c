"""A packed row as plain padded batches: the road for models that cannot serve packed rows.

Each completion stands after a copy of its prompt in a row of its own, padded on the right. What a causal model gives
for a prompt's token is the same in each copy, so every token of the packed row has one place in the batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.models.packed import Packed, alike, leaf_tokens


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences of like length. B sequences, L tokens, padded.

    index_BL: long, index of each token in the packed row (padding repeats the sequence's last one).
    mask_BL: bool, True for real tokens.
    """

    index_BL: Tensor
    mask_BL: Tensor


def padded_batches(packed: Packed, *, alone: bool = False) -> tuple[list[PaddedBatch], Tensor]:
    """The batches, and the place of each token of the row, long [T], in their tokens laid end to end.

    alone: one sequence a batch, for a model whose sequences cannot stand in one batch.
    """
    lengths = [leaf_tokens(leaf) for leaf in packed.leaves]
    groups = [[index] for index in range(len(lengths))] if alone else alike(lengths)
    batches: list[PaddedBatch] = []
    place_T = torch.zeros(packed.tokens, dtype=torch.long)
    end = 0
    for group in groups:
        width = max(lengths[index] for index in group)
        rows = []
        for index in group:
            (root, root_end), (start, own_end) = packed.leaves[index]
            row = torch.cat([torch.arange(root, root_end), torch.arange(start, own_end)])
            place_T[row] = torch.arange(end, end + len(row))
            end += width
            rows.append(torch.cat([row, row[-1:].expand(width - len(row))]))
        sizes = torch.tensor([lengths[index] for index in group])
        batches.append(PaddedBatch(torch.stack(rows), torch.arange(width)[None] < sizes[:, None]))
    return batches, place_T


def pick(outputs: Iterable[Tensor], place_W: Tensor) -> Tensor:
    """The rows [W, ...] at the places `place_W` of outputs [N, ...] laid end to end, which are never joined whole."""
    pieces, wanted, first = [], [], 0
    for output in outputs:
        inside = ((place_W >= first) & (place_W < first + len(output))).nonzero().squeeze(1)
        pieces.append(output.index_select(0, (place_W[inside] - first).to(output.device)))
        wanted.append(inside)
        first += len(output)
    return torch.cat(pieces).index_select(0, torch.argsort(torch.cat(wanted)).to(pieces[0].device))
