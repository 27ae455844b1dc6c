"""Rules that one setting can be held to. Torch-free."""

from __future__ import annotations

import re
from typing import Any

from core.errors import ConfigError

MISSING: Any = "???"
"""A value that must be given. It is omegaconf's, whose import would take a third of the time of --help."""


LONGEST = 120
"""Longer values are cut where a message shows them."""


def shown(value: object) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return shortened(text)


def shortened(text: str) -> str:
    """A text as a message shows it, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


LONGEST_TEXT = 100_000
"""Characters of one value; more is a file's work."""


def text_fault(text: str) -> str:
    """What keeps a text from being a setting; empty where nothing does."""
    if len(text) > LONGEST_TEXT:
        return f"{len(text)} characters, more than {LONGEST_TEXT}"
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a character (a lone surrogate)"
    return ""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise ConfigError("<key> must be <rule>, got <value>") unless `condition` holds."""
    if not condition:
        raise ConfigError(
            "'{key}' must be {rule}, got {value}",
            mend="set {typed}=… to a value that is {rule}",
            key=key,
            rule=rule,
            value=shown(value),
        )


def check_regex(key: str, pattern: str) -> None:
    """Raise ConfigError naming `key` unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            "'{key}' must be a regular expression, got {pattern}: {fault}",
            mend="correct {typed}=… (syntax of Python's re module)",
            key=key,
            pattern=repr(pattern),
            fault=error,
        ) from error
