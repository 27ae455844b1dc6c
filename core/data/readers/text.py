"""Plain text: one text a line, or one text a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from core.data.readers.bounds import lines_of, whole
from core.data.readers.rows import NOT_UTF8, Row


def read_lines(file: IO[bytes], path: Path) -> Iterator[Row]:
    """One text a line; blank lines are skipped."""
    for number, raw in enumerate(lines_of(file, path), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield Row(number, raw[:1000].decode("utf-8", "replace").strip(), NOT_UTF8)
            continue
        if line.strip():
            yield Row(number, {"text": line})


def read_document(file: IO[bytes], path: Path) -> Iterator[Row]:
    """The whole file as one text."""
    raw = whole(file, path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        yield Row(1, raw[:1000].decode("utf-8", "replace").strip(), NOT_UTF8)
        return
    if text.strip():
        yield Row(1, {"text": text})
