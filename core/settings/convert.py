"""Settings to plain values and back: the one converter. Torch-free."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from core.errors import ConfigError, PreftuneError
from core.settings.ranges import check_numbers
from core.settings.rules import shown
from core.suggest import mend_of

Told = typing.TypeVar("Told", bound=PreftuneError)


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


def placed(error: Told, config: type[Any], place: str, part: str = "") -> Told:
    """The error of a check of `config`, with its key as it is called where the object stands.

    A class calls its settings `stage.lr` or, where it has no part of its own, `share`; the object may stand upstream,
    as the judge, or in a list.
    place: where it stands, e.g. `upstream.sft`.
    part: how the class calls that place, e.g. `stage`. Keys of other parts stay as they are.
    """
    names = {item.name for item in dataclasses.fields(config)}
    inner = error.key.removeprefix(f"{part}.") if part else error.key
    return error.at(f"{place}.{inner}") if re.split(r"[.\[]", inner, maxsplit=1)[0] in names else error


def from_plain(cls: type[Any], values: Mapping[str, Any], where: str = "", key: str = "", part: str = "") -> Any:
    """Instance of the dataclass `cls` from plain (JSON or YAML) values; fields left out keep their defaults.

    where: told with an error that has no place of its own.
    key: setting that holds the values, e.g. `data.transforms[0]`; "" has errors name the fields alone.
    part: how the checks of `cls` call that place (see `placed`).
    Raises: ConfigError for an unknown key (with the nearest known one), a value of the wrong type, or what
    `__post_init__` refuses. Strings are taken as they stand: no interpolation, so a regex needs no escaping.
    """
    try:
        return _made(cls, values, key, part)
    except ConfigError as error:
        if error.where or not where:
            raise
        raise error.within(where) from error


def _made(cls: type[Any], values: Mapping[str, Any], key: str, part: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in values:
        if name not in known:
            offer = mend_of(str(name), known, "known keys")
            raise ConfigError("unknown key '{key}'", mend="{offer}", key=_inside(key, name), offer=offer)
    typed = {
        name: _typed(hints[name], value, _inside(key, name), _inside(part, name)) for name, value in values.items()
    }
    check_numbers(cls, typed, key)
    try:
        return cls(**typed)
    except ConfigError as error:
        raise placed(error, cls, key, part) if key else error from None


def _inside(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _typed(hint: Any, value: Any, key: str, part: str) -> Any:  # noqa: PLR0911 - one return for each kind of type
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, key, part)
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        inner = arguments[0] if arguments else Any
        items = [_typed(inner, item, f"{key}[{i}]", f"{part}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, Mapping):
        return {name: _typed(arguments[1], item, f"{key}.{name}", f"{part}.{name}") for name, item in value.items()}
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            try:
                return hint(value)
            except ValueError:
                raise _wrong(key, f"one of {', '.join(str(member.value) for member in hint)}", value) from None
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return _made(hint, value, key, part)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise _wrong(key, f"of type {name}", value)


def _wrong(key: str, kind: str, value: object) -> ConfigError:
    mend = "set {typed}=… to a value that is {kind}"
    return ConfigError("'{key}' must be {kind}, got {value}", mend=mend, key=key, kind=kind, value=shown(value))
