"""Files to rows, one at a time and with line numbers. Torch-free; pyarrow and datasets load only when asked for.

A reader yields a `Row` for every row of the file, also for those that cannot be read: these carry a fault.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from core.errors import DataError

NOT_UTF8 = "not UTF-8"
WRAPPERS = ("data", "rows", "examples", "train")
"""Keys under which a JSON object may hold its list of rows."""


class Row(NamedTuple):
    """A row as read: `value` is its columns by name, or the raw text when there is a `fault`."""

    line: int
    """Physical line on which it starts, from 1; in Parquet files and on the hub the number of the row."""
    value: Any
    fault: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of one file, streamed; the format follows from the name, and `.gz` may end it.

    Raises: DataError for an unknown format, and for a file that is damaged in such a way that rows would be lost
        without anyone knowing how many.
    """
    reader = READERS.get(data_suffix(path))
    if reader is None:
        mend = f"use one of {', '.join(sorted(READERS))} (.gz too)"
        raise DataError(f"no reader for '{path.name}'", where=str(path), mend=mend)
    try:
        with path.open("rb") as raw:
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix.lower() == ".gz" else raw
            yield from reader(file, path)
    except (EOFError, zlib.error) as error:
        raise DataError("the gzip file ends early or is damaged", str(path), "copy or download it again") from error
    except OSError as error:
        raise DataError(f"cannot read the file: {error}", where=str(path), mend="check the file") from error


def data_suffix(path: Path) -> str:
    """The suffix that names the format, in lower case and without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def is_data_file(path: Path) -> bool:
    """Whether some reader takes the file."""
    return data_suffix(path) in READERS and not path.name.startswith(".") and path.is_file()


def read_json(file: IO[bytes], path: Path) -> Iterator[Row]:
    """A list of rows, an object of rows, or JSON Lines under whatever name."""
    first, more = _first_line(file)
    alone = _parse(first) is None  # the first line is a whole JSON value
    one_row = first.startswith(b"{") and data_suffix(path) != ".json"
    if (alone and (more or one_row)) or not first.startswith((b"[", b"{")):
        yield from read_jsonl(file, path)
        return
    text, valid = _decode(file.read())
    if not alone and (data_suffix(path) != ".json" or first.startswith(b"{")) and not _is_json(text):
        file.seek(0)  # JSON Lines whose first line is broken
        yield from read_jsonl(file, path)
    elif first.startswith(b"["):
        yield from _json_list(text, text.index("[") + 1, valid, path)
    else:
        yield from _json_object(text, valid)


def read_jsonl(file: IO[bytes], _path: Path) -> Iterator[Row]:
    """One JSON value a line; blank lines are skipped. Lines end with LF or CR LF."""
    loads = json.loads
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
        try:
            yield Row(number, loads(raw.decode()))
        except (ValueError, RecursionError):
            if raw.strip():
                yield Row(number, raw[:1000].decode("utf-8", "replace").strip(), _parse(raw))


def read_delimited(file: IO[bytes], path: Path) -> Iterator[Row]:
    """CSV or TSV with a header; quoted fields may span lines."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter="\t" if data_suffix(path) == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                mend = "close the quote, or double the quotes inside quoted fields"
                raise DataError("a quote is opened here and never closed", f"{path}:{line}", mend) from error
            yield Row(line, "", f"not {data_suffix(path)[1:].upper()}: {error}")
            continue
        if not any(cells):
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not _is_unicode(header):
                mend = "the first line must name the columns, each once and in UTF-8"
                raise DataError(f"the header {header!a} names no distinct columns", f"{path}:{line}", mend)
        elif not _is_unicode(cells):
            yield Row(line, ",".join(cells), NOT_UTF8)
        elif len(cells) != len(header):
            yield Row(line, ",".join(cells), f"wrong number of cells: {len(cells)}, the header has {len(header)}")
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


def read_text(file: IO[bytes], _path: Path) -> Iterator[Row]:
    """One text a line; blank lines are skipped."""
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield Row(number, raw[:1000].decode("utf-8", "replace").strip(), NOT_UTF8)
            continue
        if line.strip():
            yield Row(number, {"text": line})


def read_parquet(file: IO[bytes], path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        mend = "write the file again, texts in UTF-8"
        raise DataError(f"not a readable Parquet file: {error}", f"{path}, after row {number}", mend) from error


def read_hub(name: str) -> Iterator[Row]:
    """Rows of the `train` split of a dataset on the Hugging Face hub, numbered from 1.

    Raises: DataError when it cannot be loaded, e.g. offline.
    """
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub, the network or the dataset's files raise
        reason = str(error).strip().partition("\n")[0]
        mend = "check the name and the network, or download the files and set data.path to their folder"
        raise DataError(f"cannot load '{name}' from the hub: {reason}", where="data.path", mend=mend) from error
    for number, value in enumerate(rows, start=1):
        yield Row(number, value)


READERS: dict[str, Callable[[IO[bytes], Path], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".txt": read_text,
    ".parquet": read_parquet,
}


def _parse(raw: bytes) -> str | None:
    """Why a line holds no single JSON value; None when it holds one."""
    try:
        json.loads(raw.strip().decode("utf-8-sig"))
    except UnicodeDecodeError:
        return NOT_UTF8
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _first_line(file: IO[bytes]) -> tuple[bytes, bool]:
    """The first line that is not blank, stripped, and whether another one follows; the file is rewound."""
    first = b""
    more = False
    for raw in file:
        line = raw.removeprefix(b"\xef\xbb\xbf").strip() if not first else raw.strip()
        if line and first:
            more = True
            break
        first = first or line
    file.seek(0)
    return first, more


def _decode(raw: bytes) -> tuple[str, bool]:
    """Text, and whether all of it was UTF-8; bytes that are none become lone surrogates."""
    try:
        return raw.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        return raw.decode("utf-8-sig", "surrogateescape"), False


def _is_unicode(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    """Index of the next character that is no white space; `at` itself where there is none."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _json_list(text: str, at: int, valid: bool, path: Path) -> Iterator[Row]:
    """Rows of the JSON list whose first element comes after index `at`."""
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    at = _skip(text, at)
    closed = text[at : at + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(path, line, text, error) from error
        if valid or _is_unicode([text[at:end]]):
            yield Row(line, value)
        else:
            yield Row(line, text[at:end], NOT_UTF8)
        at = _skip(text, end)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            raise _broken(path, line, text, "no ',' after the row")
        at = _skip(text, at + 1)
    if text[at + 1 :].strip():
        raise _broken(path, line, text, "text after the list")


def _json_object(text: str, valid: bool) -> Iterator[Row]:
    """Rows of an object {key: row} or {"data": [row]}; any other object is one row."""
    value = json.loads(text)
    lists = [key for key in WRAPPERS if isinstance(value.get(key), list)]
    if lists:
        rows = value[lists[0]]
    elif value and all(isinstance(row, dict) for row in value.values()):
        rows = list(value.values())
    else:
        rows = [value]
    for number, row in enumerate(rows, start=1):
        bad = not valid and not _is_unicode([json.dumps(row, ensure_ascii=False)])
        yield Row(number, json.dumps(row), NOT_UTF8) if bad else Row(number, row)


def _broken(path: Path, line: int, text: str, error: object) -> DataError:
    what = "the JSON list ends early or is broken: how many rows are lost cannot be known"
    mend = f"write the file again ({len(text)} characters are there), or turn it into JSON Lines"
    return DataError(f"{what} ({error})", where=f"{path}:{line}", mend=mend)
