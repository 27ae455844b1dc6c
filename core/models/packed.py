"""Packed rows: many sequences in one row without padding, each seeing only itself and its shared prompt.

A row is made of segments. A root segment attends causally to itself. A child segment (a completion) attends to the
whole of its root (the prompt it shares with its siblings) and causally to itself, and its positions continue the
root's. So a preference pair or a group of completions pays for its prompt once, and logits equal those of the plain
padded batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BUCKET_RATIO = 0.6
"""Segments share one attention call while the shorter has at least this share of the longer's length."""


@dataclass(frozen=True)
class PromptGroup:
    """A prompt and the completions that share it: token ids."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


@dataclass
class AttentionCall:
    """Segments of like length that are attended in one call. N segments, Q queries, K keys, padded.

    query_NQ, key_NK: long, index of each token in the row (padding repeats a valid index).
    mask_NQK: bool, True where a query may look; None for plain causal self-attention.
    source_S, target_S: flat position in [N*Q] of each real query, and its place in the row.
    """

    query_NQ: Tensor
    key_NK: Tensor
    mask_NQK: Tensor | None
    source_S: Tensor
    target_S: Tensor


@dataclass
class Packed:
    """A packed row of T tokens with C completions of M tokens in all.

    input_ids_T, position_ids_T: long.
    calls: attention plan.
    predict_M: index in the row whose hidden state predicts each completion token.
    taken_M: index in the row of each completion token itself.
    targets_M: the completion tokens.
    completion_M: index 0..C-1 of the completion each token belongs to.
    last_C: index in the row of the last token of each completion.
    leaves: (start, end) of root and of completion in the row, one pair a completion: for the padded path.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    calls: list[AttentionCall]
    predict_M: Tensor
    taken_M: Tensor
    targets_M: Tensor
    completion_M: Tensor
    last_C: Tensor
    leaves: list[tuple[tuple[int, int], tuple[int, int]]]

    @property
    def tokens(self) -> int:
        """Number of real tokens in the row."""
        return int(self.input_ids_T.shape[0])

    @property
    def completions(self) -> int:
        """Number of completions in the row."""
        return len(self.leaves)

    def sequence_lengths(self) -> Tensor:
        """Tokens of the sequence (prompt and completion) that each token of the row belongs to, long [T]; the
        longest one for a prompt that several completions share."""
        lengths_T = torch.zeros(self.tokens, dtype=torch.long)
        for root, own in self.leaves:
            length = leaf_tokens((root, own))
            for start, end in (root, own):
                lengths_T[start:end] = lengths_T[start:end].clamp_min(length)
        return lengths_T

    def keep(self, keep_M: Tensor) -> Packed:
        """The same row with logits at the completion tokens that `keep_M` (bool) marks, and at no others."""
        if bool(keep_M.all()):
            return self
        kept = {name: getattr(self, name)[keep_M] for name in ("predict_M", "taken_M", "targets_M", "completion_M")}
        return replace(self, **kept)

    def to(self, device: torch.device) -> Packed:
        """The same row on `device`."""
        if self.input_ids_T.device == device:
            return self

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, AttentionCall):
                return AttentionCall(**{name: move(item) for name, item in vars(value).items()})
            if isinstance(value, list):
                return [move(item) for item in value]
            return value

        return Packed(**{name: move(item) for name, item in vars(self).items()})


def leaf_tokens(leaf: tuple[tuple[int, int], tuple[int, int]]) -> int:
    """Tokens of a completion and of its prompt, from their places in the row."""
    return sum(end - start for start, end in leaf)


def longest(packed: Packed) -> int:
    """Tokens of the longest sequence (prompt and completion) in the row."""
    return max(map(leaf_tokens, packed.leaves))


def pack(sequences: Sequence[PromptGroup]) -> Packed:
    """Lay prompts and their completions out in one row.

    Every prompt must have at least one token, so that the first completion token has a predecessor; completions may
    not be empty. A plain text without prompt is a prompt of its first token and one completion of the rest.
    """
    ids = array("q")
    roots: list[tuple[int, int]] = []
    children: list[tuple[int, int, int, int]] = []
    segments: list[tuple[int, int]] = []
    """Tokens of each segment, and what its places in the row are ahead of its positions."""
    leaves: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for sequence in sequences:
        if not sequence.prompt or not all(len(completion) for completion in sequence.completions):
            raise ValueError("a packed sequence needs a prompt token and non-empty completions")
        root_start = len(ids)
        single = len(sequence.completions) == 1
        ids.extend(sequence.prompt)
        root_end = len(ids)
        segments.append((root_end - root_start, root_start))
        for completion in sequence.completions:
            start = len(ids)
            ids.extend(completion)
            end = len(ids)
            segments.append((end - start, start - (root_end - root_start)))
            leaves.append(((root_start, root_end), (start, end)))
            if not single:
                children.append((root_start, root_end, start, end))
        # A single completion is one causal run with its prompt: the cheapest call there is.
        roots.append((root_start, len(ids) if single else root_end))
    ids_T = torch.from_numpy(np.array(ids))
    tokens, ahead = np.array(segments, dtype=np.int64).reshape(-1, 2).T
    (_, root_ends), (starts, ends) = np.array(leaves, dtype=np.int64).reshape(-1, 2, 2).transpose(1, 2, 0)
    counts = ends - starts
    firsts = np.cumsum(counts) - counts
    taken = np.arange(counts.sum()) + np.repeat(starts - firsts, counts)
    predict = taken - 1
    predict[firsts] = root_ends - 1
    taken_M = torch.from_numpy(taken)
    return Packed(
        input_ids_T=ids_T,
        position_ids_T=torch.from_numpy(np.arange(len(ids)) - np.repeat(ahead, tokens)),
        calls=[*_root_calls(roots), *_child_calls(children)],
        predict_M=torch.from_numpy(predict),
        taken_M=taken_M,
        targets_M=ids_T[taken_M],
        completion_M=torch.from_numpy(np.repeat(np.arange(len(leaves)), counts)),
        last_C=torch.from_numpy(ends - 1),
        leaves=leaves,
    )


def pack_texts(texts: Sequence[Sequence[int]]) -> Packed:
    """Whole texts of at least two tokens: every token but the first is predicted."""
    return pack([PromptGroup(text[:1], [text[1:]]) for text in texts])


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped so that lengths in a group are alike, longest group first."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[index] < _BUCKET_RATIO * longest:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


def _spans(spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Index table [N, L] of the spans, padded with each span's last index, and its validity mask."""
    start = torch.tensor([span[0] for span in spans])[:, None]
    end = torch.tensor([span[1] for span in spans])[:, None]
    index = start + torch.arange(int((end - start).max()))[None, :]
    valid = index < end
    return torch.minimum(index, end - 1), valid


def _call(query: Tensor, valid: Tensor, key: Tensor, mask: Tensor | None) -> AttentionCall:
    source = valid.flatten().nonzero().squeeze(1)
    return AttentionCall(query, key, mask, source, query.flatten()[source])


def _root_calls(roots: Sequence[tuple[int, int]]) -> list[AttentionCall]:
    calls = []
    for group in alike([end - start for start, end in roots]):
        index, valid = _spans([roots[i] for i in group])
        calls.append(_call(index, valid, index, None))
    return calls


def _child_calls(children: Sequence[tuple[int, int, int, int]]) -> list[AttentionCall]:
    calls = []
    for group in alike([end - root_start for root_start, _, _, end in children]):
        root, root_valid = _spans([children[i][:2] for i in group])
        own, own_valid = _spans([children[i][2:] for i in group])
        width = own.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = torch.cat(
            [root_valid[:, None, :].expand(-1, width, -1), causal[None] & own_valid[:, None, :]], dim=2
        ).contiguous()
        # Padded queries keep one visible key, so that no row of the softmax is empty.
        mask[:, :, 0] |= ~own_valid
        calls.append(_call(own, own_valid, torch.cat([root, own], dim=1), mask))
    return calls
