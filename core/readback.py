"""Dataclasses out of JSON files of older, half-written or damaged runs: what does not fit is left out. Torch-free."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

D = TypeVar("D")

_UNFIT = object()
"""What stands for a value of another type than its field's."""


def read_back(kind: type[D], values: object, **missing: Any) -> D:
    """The dataclass `kind` of a JSON object; what is no object is read as an empty one.

    Names that are not known are left out. A field whose value is missing or of another type keeps its default; entries
    of lists and mappings that are of another type are left out one by one. Numbers may be NaN or infinite.

    missing: what stands for the fields that have no default.
    """
    given = values if isinstance(values, Mapping) else {}
    shape: Any = kind  # mypy takes no type variable for hashable
    hints = _hints(shape)
    read = {name: _fitting(hints[name], given[name]) for name in hints if name in given}
    return kind(**{**missing, **{name: value for name, value in read.items() if value is not _UNFIT}})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Field to resolved type."""
    resolved = get_type_hints(kind)
    return {item.name: resolved[item.name] for item in fields(kind)}


def _fitting(hint: Any, value: Any) -> Any:
    """The value as the type asks for it, else _UNFIT."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return next((read for one in get_args(hint) if (read := _fitting(one, value)) is not _UNFIT), _UNFIT)
    if origin is not None:
        return _collection(origin, get_args(hint)[-1], value)
    if is_dataclass(hint):
        return _object(hint, value)
    # JSON writes 2.0 and 2 alike; a truth value is no number.
    fits = isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)
    return value if fits else _UNFIT


def _collection(kind: Any, item: Any, value: Any) -> Any:
    """A list or a mapping, without the entries that are no `item`."""
    if kind is list and isinstance(value, list):
        return [read for one in value if (read := _fitting(item, one)) is not _UNFIT]
    if kind is not list and isinstance(value, Mapping):
        return {name: read for name, one in value.items() if (read := _fitting(item, one)) is not _UNFIT}
    return _UNFIT


def _object(kind: Any, value: Any) -> Any:
    """A dataclass, read by its own `from_json` where its file has another shape than its fields."""
    if not isinstance(value, Mapping):
        return _UNFIT
    own = getattr(kind, "from_json", None)
    return own(value) if own else read_back(kind, value)
