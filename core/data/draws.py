"""Orders, parts and seeds that depend on a seed and on the records' content alone. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from core.data.records import Record
from core.errors import DataError

if TYPE_CHECKING:
    import numpy as np


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


def drawn_places(keys: Iterable[str], seed: int) -> np.ndarray:
    """A number for each key, uint64 [N]: its place among 2^64, the first bytes of its draw."""
    import numpy as np

    return np.frombuffer(b"".join(_draw(seed, key)[:8] for key in keys), dtype=">u8").astype(np.uint64)


def held_out(drawn_N: np.ndarray, frac: float, most: int) -> np.ndarray:
    """Which of N records are held out, bool [N], by the places that their prompts drew. Equal prompts stand on one
    side, and a record stays on its side when others are added.

    frac: share of the prompts held out, 0..1; where it is above 0 and there are two prompts, at least one is.
    most: most records held out; those with the smallest draws. One prompt at least stays for training, and so do
        prompts with far more records than the others, as long as there are others.
    """
    import numpy as np

    prompts, sizes = np.unique(drawn_N, return_counts=True)
    count = len(prompts)
    if count > 1:
        fair = sizes <= max(frac * len(drawn_N), float(np.median(sizes)))
        prompts, sizes = prompts[fair], sizes[fair]
    wanted = int(np.searchsorted(prompts / 2.0**64, frac)) or int(frac > 0 and count > 0)
    held: list[int] = []
    room = most
    for prompt, size in zip(prompts[:wanted], sizes[:wanted], strict=True):
        if room < 1 or len(held) + 1 >= count:
            break
        if size <= room:
            held.append(prompt)
            room -= int(size)
    return np.isin(drawn_N, np.array(held, dtype=np.uint64))
