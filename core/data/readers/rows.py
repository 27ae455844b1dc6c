"""What readers yield."""

from __future__ import annotations

from typing import Any, NamedTuple

NOT_UTF8 = "not UTF-8"

TRAIN_NAMES = ("train", "training")
HELDOUT_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "held_out")
"""What files call the part to train on, and those to hold out."""


class Row(NamedTuple):
    """A row as read: `value` is its columns by name, or the raw text when there is a `fault`."""

    line: int
    """Physical line on which it starts, from 1; in Parquet files and on the hub the number of the row."""
    value: Any
    fault: str | None = None
    """Why it cannot be read; the row goes to quarantine with it."""
    heldout: bool = False
    """Whether the file itself holds the row out of training."""


def is_unicode(text: str) -> bool:
    """Whether a text decoded with `surrogateescape` was UTF-8 throughout."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_nulls(value: Any) -> Any:
    """A value without the empty fields of its structs. A table has one struct for all rows, so a field that a row does
    not have is there as null; whether it was written as null cannot be told any more."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """A cell of a table as JSON has it: dates and exact numbers as text, bytes as the text that they are."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
