"""JSON: a list of rows, an object of rows, or JSON Lines under whatever name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.data.readers import data_suffix
from core.data.readers.rows import NOT_UTF8, Row, is_unicode
from core.errors import DataError

WRAPPERS = ("data", "rows", "examples", "train")
"""Keys under which a JSON object may hold its list of rows."""


def read_json(file: IO[bytes], path: Path) -> Iterator[Row]:
    """A list of rows, an object of rows, or JSON Lines under whatever name."""
    first, more = _first_line(file)
    alone = _fault(first) is None  # the first line is a whole JSON value
    named_json = data_suffix(path) == ".json"
    one_row = first.startswith(b"{") and not named_json
    if (alone and (more or one_row)) or not first.startswith((b"[", b"{")):
        yield from read_jsonl(file, path)
        return
    text, valid = _decode(file.read())
    if not alone and (not named_json or first.startswith(b"{")) and not _is_json(text):
        file.seek(0)  # JSON Lines whose first line is broken
        yield from read_jsonl(file, path)
    elif first.startswith(b"["):
        yield from _Scan(text, valid, path).list_rows()
    else:
        yield from _Scan(text, valid, path).object_rows()


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
                yield Row(number, raw[:1000].decode("utf-8", "replace").strip(), _fault(raw))


def _fault(raw: bytes) -> str | None:
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


_SPACE = re.compile(r"[ \t\r\n]*")


class _Scan:
    """One pass over a JSON document that knows the line of each row."""

    def __init__(self, text: str, valid: bool, path: Path) -> None:
        self.text, self.valid, self.path = text, valid, path
        self.at = 0
        self.line = 1
        self.counted = 0
        """Index up to which lines were counted."""
        self.decode = json.JSONDecoder().raw_decode
        self._space()

    def list_rows(self) -> Iterator[Row]:
        """Rows of a document that is a list."""
        yield from self._elements()
        if self.text[self.at :].strip():
            raise self._broken("text after the list")

    def object_rows(self) -> Iterator[Row]:
        """Rows of an object {key: row} or {"data": [row]}; any other object is one row. The document is valid JSON."""
        whole = json.loads(self.text)
        wrapper = next((key for key in WRAPPERS if isinstance(whole.get(key), list)), None)
        keyed = bool(whole) and all(isinstance(row, dict) for row in whole.values())
        if wrapper is None and not keyed:
            yield self._row(whole, self.text)
            return
        del whole
        self._step()
        while self.text[self.at] != "}":
            key, self.at = self.decode(self.text, self.at)
            self._space()
            self._step()  # the colon
            if key == wrapper:
                yield from self._elements()
            else:
                row = self._value()
                if wrapper is None:
                    yield row
            self._space()
            if self.text[self.at] == ",":
                self._step()

    def _elements(self) -> Iterator[Row]:
        """Rows of the list that begins here."""
        self._step()
        closed = self.text[self.at : self.at + 1] == "]"
        while not closed:
            yield self._value()
            self._space()
            closed = self.text[self.at : self.at + 1] == "]"
            if not closed:
                if self.text[self.at : self.at + 1] != ",":
                    raise self._broken("no ',' after the row")
                self._step()
        self.at += 1

    def _value(self) -> Row:
        """The value that begins here, as a row."""
        start = self.at
        self.line, self.counted = self.line + self.text.count("\n", self.counted, start), start
        try:
            value, self.at = self.decode(self.text, start)
        except (ValueError, RecursionError) as error:
            raise self._broken(error) from error
        return self._row(value, self.text[start : self.at] if not self.valid else "")

    def _row(self, value: Any, text: str) -> Row:
        return Row(self.line, value) if self.valid or is_unicode(text) else Row(self.line, text, NOT_UTF8)

    def _step(self) -> None:
        """Over one character and the white space behind it."""
        self.at += 1
        self._space()

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _broken(self, error: object) -> DataError:
        what = "the JSON list ends early or is broken: how many rows are lost cannot be known"
        mend = f"write the file again ({len(self.text)} characters are there), or turn it into JSON Lines"
        return DataError(f"{what} ({error})", where=f"{self.path}:{self.line}", mend=mend)
