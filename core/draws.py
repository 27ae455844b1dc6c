"""Orders, parts and seeds that depend on a seed and on the records' content alone. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from core.errors import DataError
from core.records import Record


def seed_from(*parts: object) -> int:
    """A 31-bit seed that depends on `parts` alone."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def shuffled(records: Sequence[Record], seed: int) -> list[Record]:
    """The records in an order drawn by a hash of each: two records keep their order when others are added or left out.
    Equal records stay in the order in which they came."""
    return sorted(records, key=lambda record: _draw(seed, record.key))


def in_fold(prompt_keys: Sequence[str], fold: int, folds: int, seed: int) -> list[bool]:
    """Which records are in fold `fold` (counted from 1) of `folds`, one value for each.

    Equal prompts are in one fold, each prompt is in exactly one, and the folds' numbers of prompts differ by one at
    most. Raises: DataError where there are fewer prompts than folds.
    """
    order = sorted(set(prompt_keys), key=lambda key: _draw(seed, key))
    if len(order) < folds:
        what = f"data.folds={folds}, but there are only {len(order)} different prompts"
        raise DataError(what, "data.folds", "set it to as many or fewer, or give more records")
    held = set(order[fold - 1 :: folds])
    return [key in held for key in prompt_keys]
