"""The tokens that end a completion: the end-of-turn token, and those that the model's files name beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.files import object_in

_FILES = ("generation_config.json", "config.json")
"""Where a model names its ends; the first that does tells. Instruction-tuned families name several: Llama 3, Gemma and
Phi 3 end a turn with one token and a text with another."""


def end_ids(folder: Path, eos: int, rows: int) -> tuple[int, ...]:
    """Ids at which generation stops, `eos` first. rows: size of the vocabulary; what lies outside is no token."""
    for name in _FILES:
        named = _named(folder / name)
        if named:
            return tuple(dict.fromkeys((eos, *(end for end in named if 0 <= end < rows))))
    return (eos,)


def _named(path: Path) -> list[int]:
    """The ids under `eos_token_id`; none where the file does not say, or cannot be read."""
    ends: Any = object_in(path).get("eos_token_id")
    return [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
