"""The order in which steps take a stage's examples. Torch-free."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from core.errors import ConfigError
from core.settings.schema import Order

T = TypeVar("T")

_WINDOW_STEPS = 50
"""Steps whose examples are sorted by length together: enough for like lengths, few enough to stay random."""


_MOST_TIMES = 100
"""How often one step may take the same item: more is a slip, and would eat memory and time."""


def step_items(
    items: Sequence[T], step: int, batch_size: int, seed: int, order: Order | str = Order.shuffled
) -> list[T]:
    """The items of step `step`: consecutive slices of an order drawn anew for each epoch, crossing epochs seamlessly.

    Depends on its arguments alone, so a resumed run sees what the straight run saw. Orders by length ask items for
    `tokens`. Raises ConfigError for a step that would take each item hundreds of times.
    """
    count = len(items)
    if batch_size > _MOST_TIMES * count:
        raise ConfigError(
            "'{key}' is {size}, and there are {count} examples: one step would take each of them {times} times",
            mend="set {typed}=… to {count} or less", key="stage.batch_size", size=batch_size, count=count,
            times=batch_size // max(count, 1),
        )  # fmt: skip
    start = step * batch_size
    picked: list[T] = []
    while len(picked) < batch_size:
        epoch, offset = divmod(start + len(picked), count)
        if order == Order.shuffled or (order == Order.curriculum and epoch > 0):
            places = _shuffled(count, seed, epoch)
        else:
            places = _by_length(token_counts(items), batch_size, seed, epoch, Order(order))
        picked += [items[i] for i in places[offset : offset + batch_size - len(picked)]]
    return picked


def token_counts(items: Sequence[Any]) -> bytes:
    """Tokens of each item as unsigned 32-bit numbers; a sequence that knows them brings `token_counts` itself."""
    known = getattr(items, "token_counts", None)
    return known if known is not None else array("I", (item.tokens for item in items)).tobytes()


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> array[int]:
    places = array("I", range(count))
    random.Random(f"{seed}:{epoch}").shuffle(places)
    return places


@lru_cache(maxsize=4)
def _by_length(counts: bytes, batch_size: int, seed: int, epoch: int, order: Order) -> array[int]:
    """The epoch's order. Sorting is stable on the shuffle, so equal lengths stay in random order."""
    tokens = array("I", counts)
    shuffled = _shuffled(len(tokens), seed, epoch)
    if order is Order.curriculum:
        return array("I", sorted(shuffled, key=tokens.__getitem__))
    window = _WINDOW_STEPS * batch_size
    ordered: list[int] = []
    for start in range(0, len(shuffled), window):
        ordered += sorted(shuffled[start : start + window], key=tokens.__getitem__)
    # Steps go on over the end of an epoch: what the last step of the epoch before takes is cut off first.
    head = -epoch * len(ordered) % batch_size
    steps = [ordered[start : start + batch_size] for start in range(head, len(ordered), batch_size)]
    last = [steps.pop()] if steps and len(steps[-1]) < batch_size else []
    random.Random(f"{seed}:{epoch}:steps").shuffle(steps)
    return array("I", [place for step in (ordered[:head], *steps, *last) for place in step])
