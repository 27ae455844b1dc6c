"""What readers yield."""

from __future__ import annotations

from typing import Any, NamedTuple

NOT_UTF8 = "not UTF-8"


class Row(NamedTuple):
    """A row as read: `value` is its columns by name, or the raw text when there is a `fault`."""

    line: int
    """Physical line on which it starts, from 1; in Parquet files and on the hub the number of the row."""
    value: Any
    fault: str | None = None
    """Why it cannot be read; the row goes to quarantine with it."""


def is_unicode(text: str) -> bool:
    """Whether a text decoded with `surrogateescape` was UTF-8 throughout."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
