"""What no value of a configuration may be, wherever it stands: not finite, a secret, or text that no file can hold.

Torch-free. Settings with a type of their own say more in core.settings.ranges; this also sees what is free: options of
adapters, members of a reward, arms of a study.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.secrets import holds_secret
from core.settings.rules import shown, text_fault


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ConfigError naming the first value, or key, that cannot be meant."""
    for key, value in _leaves(values, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError("'{key}' must be finite, got {value}", mend="set {typed}=… to a number", key=key,
                              value=str(value))  # fmt: skip
        if isinstance(value, str):
            _check_text(key, value)


def _check_text(key: str, text: str) -> None:
    if holds_secret(text):
        raise ConfigError(
            "'{key}' holds a password or a token, which would stand in the run folder, in the report and at the "
            "tracker",
            mend="take it out of {typed}=…; keep it in an environment variable, which a part that needs one is told by "
            "its name, e.g. reward.key_env=NAME",
            key=key,
        )
    if fault := text_fault(text):
        raise ConfigError("'{key}' holds {fault}, got {value}", mend="write {typed}=… anew, as UTF-8, or name a file",
                          key=key, fault=fault, value=shown(text))  # fmt: skip


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of everything that holds nothing else; a key that the user chose counts as a text too."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_text(key or "the top level", str(name))
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{place}]")
    else:
        yield key, value


_FOLDER = "set {typed}=… to a folder that you may write to"


def check_utf8(key: str, path: str | None) -> None:
    """Raise ConfigError for a file that is no text; what is not there is told by whoever reads it."""
    place = Path(path or "")
    try:
        if place.is_file():
            place.read_text(encoding="utf-8")
    except ValueError as error:
        raise ConfigError("'{key}' must name a text file in UTF-8: {fault}", "{path}", "set {typed}=… to a text file",
                          key=key, fault=str(error), path=str(place)) from error  # fmt: skip
    except OSError:
        return


def check_named(named: Mapping[str, str | None]) -> None:
    """Raise ConfigError for a path, by the key that names it, at which stands what is neither a file nor a folder."""
    for key, path in named.items():
        try:
            place = Path(path or ".").expanduser()
            odd = place.exists() and not (place.is_file() or place.is_dir())
        except (OSError, RuntimeError, ValueError):  # no path at all: told by whoever reads it
            continue
        if odd:
            raise ConfigError("'{key}' must be a file or a folder; {path} is a device, a socket or a pipe", "{path}",
                              "set {typed}=… to a file or a folder", key=key, path=str(place))  # fmt: skip


def check_folder(key: str, folder: str) -> None:
    """Raise ConfigError where a folder that is to be written into stands on a file, or below one."""
    if not folder.strip():
        raise ConfigError("'{key}' must be a folder, got {value}", mend=_FOLDER, key=key, value=shown(folder))
    try:
        place = Path(folder).expanduser().absolute()
        there = next(one for one in (place, *place.parents) if one.exists())
        fault = "" if there.is_dir() else f"{there} is a file"
    except (OSError, RuntimeError) as error:  # a name too long for the disk; a home that nobody has
        there, fault = Path(folder), getattr(error, "strerror", None) or str(error)
    if fault:
        raise ConfigError("'{key}' must be a folder, but {fault}", "{there}", _FOLDER, key=key, fault=fault,
                          there=shown(str(there))[1:-1])  # fmt: skip
