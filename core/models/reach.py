"""How far back a model's tokens look, and how many positions it has, as its config and its buffers tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from core.errors import ModelError
from core.models.roles import ScoreModel, TokenModel

_WINDOW = re.compile(r"(window|window_size|local_attention|attention_chunk_size)$")
"""Config keys of a bound on how far back a token looks."""
_BY_LENGTH = "longrope"
"""Position encoding that depends on how long the longest sequence of a batch is."""
_BY_HISTORY = "dynamic"
"""Position encoding that depends, beyond its first length, on the longest sequence that the model ever saw."""
_POSITION_BUFFERS = ("bias", "embed_positions", "pos_encoding", "causal_mask")
"""Buffers of attention layers that hold a row for each position."""


def reach(model: TokenModel | ScoreModel, max_length: int) -> tuple[int | None, bool]:
    """Longest sequence in tokens that packed rows serve, None for any; and whether longer ones must go one by one.

    Raises ModelError where positions of sequences up to `max_length` depend on what the model was given before.
    """
    text = model.config.get_text_config(decoder=True)
    settings = text.to_dict()
    limits = []
    for name in settings:
        if _WINDOW.search(name):
            # Read from the object: a config may put aside a window that it does not use.
            value = getattr(text, name, None)
            limits += [
                item for item in (value if isinstance(value, list) else [value]) if type(item) is int and item > 0
            ]
    lengths = []
    for rope in _ropes(settings.get("rope_parameters") or settings.get("rope_scaling") or {}):
        if rope.get("rope_type") in (_BY_LENGTH, _BY_HISTORY):
            first = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            lengths.append(int(first or text.max_position_embeddings))
            if rope["rope_type"] == _BY_HISTORY and lengths[-1] < max_length:
                raise ModelError(
                    f"beyond {lengths[-1]} tokens the model's positions depend on what it was given before "
                    f"(rope_type {_BY_HISTORY})",
                    f"model type {model.config.model_type}, model.max_length={max_length}",
                    f"set model.max_length={lengths[-1]}",
                )
    return min([*limits, *lengths], default=None), bool(lengths)


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """Position encodings of a config; there may be one for each type of layer."""
    if isinstance(parameters, dict):
        if "rope_type" in parameters:
            yield parameters
        for value in parameters.values():
            yield from _ropes(value)


def check_positions(base: Any, max_length: int) -> None:
    """Raise ModelError where the model has a learned or stored position for fewer than `max_length` tokens."""
    longest = getattr(base.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for path, part in base.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(part, nn.Embedding) and re.search(r"wpe|^positions?_|_positions?(_|$)", name):
            have = part.num_embeddings - int(getattr(part, "offset", 0) or 0)
        elif longest and any(
            longest in buffer.shape for key, buffer in part.named_buffers(recurse=False) if key in _POSITION_BUFFERS
        ):
            have = int(longest)
        else:
            continue
        if max_length > have:
            raise ModelError(
                f"the model has {have} positions, fewer than model.max_length={max_length}",
                f"model type {base.config.model_type}, {path}",
                f"set model.max_length={have}",
            )
