"""The ranges that numeric settings are held to: declared beside the default, checked before an object is made.

Torch-free. `lr: float = number(2e-5, above=0, at_most=10)` declares one. A field that a subclass gives another default
keeps the range of its base; a numeric field without one may be any finite number.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, overload

from core.settings.rules import require

T = TypeVar("T")

MANY = 10**9
"""More of anything than a run comes to. A larger whole number is a slip."""
WIDEST = 2**63 - 1
"""Largest whole number that torch can take."""
LARGEST = 3.4e38
"""Largest number that fp32 can hold."""
_METADATA = "preftune.range"


@dataclass(frozen=True)
class Range:
    """Bounds of a number; infinity, NaN and what torch cannot hold are in none."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies inside."""
        if not abs(value) <= (WIDEST if isinstance(value, int) else LARGEST):  # NaN is in no order
            return False
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        """`> 0 and <= 10`, as it stands behind "must be"."""
        if None not in (self.at_least, self.at_most):
            return f"between {self.at_least} and {self.at_most}"
        signs = {">": self.above, ">=": self.at_least, "<": self.below, "<=": self.at_most}
        return " and ".join(f"{sign} {bound}" for sign, bound in signs.items() if bound is not None) or "finite"


@overload
def number(
    default: Callable[[], T], *, above: float | None = ..., at_least: float | None = ..., below: float | None = ...,
    at_most: float | None = ...,
) -> T: ...  # fmt: skip


@overload
def number(
    default: T, *, above: float | None = ..., at_least: float | None = ..., below: float | None = ...,
    at_most: float | None = ...,
) -> T: ...  # fmt: skip


def number(
    default: Any, *, above: float | None = None, at_least: float | None = None, below: float | None = None,
    at_most: float | None = None,
) -> Any:  # fmt: skip
    """A field of a settings dataclass that is a number within bounds, or an optional one, a list or a dictionary of
    such: `lr: float = number(2e-5, above=0)`. A value outside ends the run before torch is imported.

    default: what stands there unset; for a list or a dictionary a function that makes it, e.g. `list`.
    above, below: bounds that the number may not have. at_least, at_most: bounds that it may have.
    """
    metadata = {_METADATA: Range(above, at_least, below, at_most)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def inner_type(hint: Any) -> Any:
    """What an optional, a list, a tuple or a dictionary holds; any other type as it is."""
    arguments = [item for item in typing.get_args(hint) if item not in (type(None), ...)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list, tuple, dict) and arguments:
        return inner_type(arguments[-1])
    return hint


@lru_cache(maxsize=512)
def _hints(config: type) -> dict[str, Any]:
    """Innermost type of each field."""
    hints = typing.get_type_hints(config)
    return {item.name: inner_type(hints.get(item.name)) for item in dataclasses.fields(config)}


def declared(config: type, name: str) -> Range | None:
    """The range that a class or the nearest of its bases declares for a field; None where none does."""
    for base in config.__mro__:
        for item in dataclasses.fields(base) if dataclasses.is_dataclass(base) else ():
            if item.name == name and _METADATA in item.metadata:
                found: Range = item.metadata[_METADATA]
                return found
    return None


@lru_cache(maxsize=512)
def ranges(config: type) -> dict[str, Range]:
    """The range of each numeric field of a settings dataclass."""
    return {name: declared(config, name) or Range() for name, hint in _hints(config).items() if hint in (int, float)}


def check_numbers(config: type, values: Mapping[str, Any], key: str = "") -> None:
    """Raise ConfigError for the first number among the plain `values` of a settings dataclass that is out of range.

    key: where the values stand, e.g. `stage`. Dictionaries and lists of settings are looked into; what is no number is
    left to the check of types.
    """
    held = ranges(config)
    for name, value in values.items():
        at = f"{key}.{name}" if key else name
        if name in held:
            check_number(config, name, value, at)
        elif isinstance(inner := _hints(config).get(name), type) and dataclasses.is_dataclass(inner):
            for place, part in _parts(value, inner, at):
                check_numbers(inner, part, place)


def check_number(config: type, name: str, value: Any, key: str) -> None:
    """Raise ConfigError naming `key` for a number in `value` that is out of range for the field `name` of `config`."""
    held = ranges(config)[name]
    for place, found in _numbers(value, key):
        require(held.holds(found), place, str(held), found)


class Checked:
    """Base of settings: an object whose numbers are out of range cannot be made."""

    def __post_init__(self) -> None:
        check_numbers(type(self), vars(self))


def _numbers(value: Any, at: str) -> Iterator[tuple[str, float]]:
    """(key, number) of each number in a value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield at, value
    for place, item in _items(value, at):
        yield from _numbers(item, place)


def _parts(value: Any, config: type, at: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, plain values) of each object of a class in a value."""
    if isinstance(value, Mapping) and set(value) <= set(_hints(config)):
        yield at, value
        return
    for place, item in _items(value, at):
        yield from _parts(item, config, place)


def _items(value: Any, at: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"{at}.{key}", item) for key, item in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [(f"{at}[{place}]", item) for place, item in enumerate(value)]
    return []
