"""CSV and TSV, with a header or without."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from core.data.dialects.fields import COLUMNS
from core.data.readers import data_suffix
from core.data.readers.bounds import ROW_BYTES, lines_of, too_long
from core.data.readers.rows import NOT_UTF8, Row, is_unicode
from core.errors import DataError

COLUMN = "column_{}"
"""Names of the columns of a file without header, counted from 1."""

SPAN = 100
"""Most lines that a quoted cell of a TSV file may span; in CSV there is no limit."""

_NAME = re.compile(r"[^\W\d][\w .:/()#&'-]{0,39}")
"""What a column may be called."""


def read_delimited(file: IO[bytes], path: Path) -> Iterator[Row]:
    """CSV or TSV; quoted fields may span lines. The first line names the columns unless it is plainly data."""
    csv.field_size_limit(ROW_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _rows(text, path)
    finally:
        text.detach()  # the file is closed by whoever opened it


def _rows(text: io.TextIOWrapper, path: Path) -> Iterator[Row]:
    kind = "TSV" if data_suffix(path) == ".tsv" else "CSV"
    cells_of = _tsv(text, path) if kind == "TSV" else _csv(text, path)
    header: list[str] | None = None
    for line, cells, fault in cells_of:
        if fault is not None:
            yield Row(line, "", f"not {kind}: {fault}")
        elif header is None and is_header(cells):
            header = cells
            if len(set(header)) < len(header) or not is_unicode("".join(header)):
                mend = "the first line must name the columns, each once and in UTF-8"
                raise DataError(f"the header {header!a} names no distinct columns", f"{path}:{line}", mend)
        else:
            header = header or [COLUMN.format(number) for number in range(1, len(cells) + 1)]
            yield _row(line, cells, header)


def _row(line: int, cells: list[str], header: list[str]) -> Row:
    if not is_unicode("".join(cells)):
        return Row(line, ",".join(cells), NOT_UTF8)
    if len(cells) != len(header):
        what = f"wrong number of cells: {len(cells)}, the header has {len(header)}"
        return Row(line, ",".join(cells), what)
    return Row(line, dict(zip(header, cells, strict=True)))


def is_header(cells: list[str]) -> bool:
    """Whether the first line names the columns: one of its cells is the name of a well-known column, or all of them
    could be names. It is plainly data where a cell is empty (but for the first, where tables have an index) or a
    number, or where one is a sentence: longer than 40 characters, of more than five words, or with a mark that names
    do not have (`?`, `=`, a literal `\\n` …)."""
    names = [cell.strip() for cell in cells]
    if any(name in COLUMNS for name in names):
        return True
    names = names[1:] if len(names) > 1 and not names[0] else names
    return all(_NAME.fullmatch(name) and len(name.split()) <= 5 for name in names)


_Cells = Iterator[tuple[int, list[str], str | None]]
"""Line, cells, and why these cannot be told."""


def _csv(text: io.TextIOWrapper, path: Path) -> _Cells:
    reader = csv.reader(lines_of(text, path), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise _unclosed(path, line) from error
            if "field limit" in str(error):
                raise too_long("a cell", path, line) from error
            yield line, [], str(error)
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells, None


def _tsv(text: io.TextIOWrapper, path: Path) -> _Cells:
    """Cells of lines that are quoted as in CSV, or not quoted at all: both are found under this name, also in one file.
    What is not quoted as in CSV, over several lines where need be, is split at its tabs."""
    width = 0
    number = 0
    waiting: deque[str] = deque()
    lines = lines_of(text, path)
    while line := waiting.popleft() if waiting else next(lines, ""):
        number += 1
        if not line.strip():
            continue
        cells, more = line.rstrip("\r\n").split("\t"), 0
        if any(cell.startswith('"') for cell in cells):
            cells, more = _quoted(line, cells, width, waiting, lines)
        width = width or len(cells)
        yield number, cells, None
        number += more


def _quoted(
    line: str, plain: list[str], width: int, waiting: deque[str], lines: Iterator[str]
) -> tuple[list[str], int]:
    """Cells of a line with quotes, and how many more lines they span; `plain` where the quotes are not those of CSV."""
    cells = _parsed(line)
    if cells is not None and len(cells) == (width or len(cells)):
        return cells, 0
    for count in range(1, SPAN + 1):
        if len(waiting) < count:
            if not (read := next(lines, "")):
                break
            waiting.append(read)
        more = waiting[count - 1]
        if len(plain) == width == len(more.rstrip("\r\n").split("\t")):
            break  # two whole rows, the first of them not quoted
        line += more
        cells = _parsed(line)
        if cells is not None and len(cells) == (width or len(cells)):
            for _ in range(count):
                waiting.popleft()
            return cells, count
    return plain, 0


def _parsed(raw: str) -> list[str] | None:
    """Cells of one row with quotes; None where they are not those of CSV."""
    try:
        rows = list(csv.reader(io.StringIO(raw, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _unclosed(path: Path, line: int) -> DataError:
    mend = "close the quote, or double the quotes inside quoted fields"
    return DataError("a quote is opened here and never closed", f"{path}:{line}", mend)
