"""Settings to plain values and back: the one converter. Torch-free."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.suggest import mend_of


def to_plain(value: Any) -> Any:
    """Dataclasses, enums and paths as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(cls: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """Instance of the dataclass `cls` from plain (JSON or YAML) values; fields left out keep their defaults.

    Raises: ConfigError naming `where` for an unknown key (with the nearest known one), a value of the wrong type, or
    what `__post_init__` refuses. Strings are taken as they stand: no interpolation, so a regex needs no escaping.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=where, mend=mend_of(str(key), known, "known keys"))
    typed = {key: _typed(hints[key], value, key, where) for key, value in values.items()}
    try:
        return cls(**typed)
    except ConfigError as error:
        if error.where or not where:
            raise
        raise ConfigError(error.what, where=where, mend=error.mend) from error


def _typed(hint: Any, value: Any, key: str, where: str) -> Any:  # noqa: PLR0911 - one return for each kind of type
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, key, where)
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        items = [_typed(arguments[0] if arguments else Any, item, f"{key}[{i}]", where) for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, Mapping):
        return {name: _typed(arguments[1], item, f"{key}.{name}", where) for name, item in value.items()}
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            try:
                return hint(value)
            except ValueError:
                names = ", ".join(str(member.value) for member in hint)
                raise ConfigError(f"'{key}' must be one of {names}, got {value!r}", where=where) from None
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return from_plain(hint, value, f"{where}.{key}" if where else key)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"'{key}' must be of type {name}, got {value!r}", where=where, mend=f"set {key} to a {name}")
