"""JSON: a list of rows, an object of rows, or JSON Lines under whatever name."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.data.readers import data_suffix
from core.data.readers.bounds import ROW_BYTES, lines_of, too_long
from core.data.readers.rows import HELDOUT_NAMES, NOT_UTF8, TRAIN_NAMES, Row, is_unicode
from core.errors import DataError

WRAPPERS = ("data", "rows", "examples", *TRAIN_NAMES)
"""Keys under which a JSON object may hold its list of rows."""

_PEEK_BYTES = 2**20
"""Of the first line, what is looked at."""


def read_json(file: IO[bytes], path: Path) -> Iterator[Row]:
    """A list of rows, an object of rows, or JSON Lines under whatever name."""
    first, alone, more = _first_line(file)
    named_json = data_suffix(path) == ".json"
    if not first.startswith((b"[", b"{")) or (alone and more):
        yield from read_jsonl(file, path)
        return
    if first.startswith(b"["):
        if alone or named_json or _Shape(file, path).is_json:
            file.seek(0)
            yield from _Scan(file, path).list_rows()
            return
    else:
        shape = _Shape(file, path)
        if shape.is_json and (named_json or shape.parted or not alone):
            file.seek(0)
            yield from _Scan(file, path).object_rows(shape)
            return
    file.seek(0)  # JSON Lines, maybe with a broken first line
    yield from read_jsonl(file, path)


def read_jsonl(file: IO[bytes], path: Path) -> Iterator[Row]:
    """One JSON value a line; blank lines are skipped. Lines end with LF or CR LF."""
    loads = json.loads
    for number, raw in enumerate(lines_of(file, path), start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
        if raw == b"\n":
            continue
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


def _first_line(file: IO[bytes]) -> tuple[bytes, bool, bool]:
    """The beginning of the first line that is not blank, whether it is a whole JSON value, and whether another line
    follows; the file is rewound."""
    first, alone, more, blank = b"", False, False, 0
    while raw := file.readline(_PEEK_BYTES):
        line = raw.strip() if first or blank else raw.removeprefix(b"\xef\xbb\xbf").strip()
        if line and first:
            more = True
            break
        if line:
            first = line
            ended = raw.endswith(b"\n") or len(raw) < _PEEK_BYTES
            alone = ended and _fault(line) is None
            if not ended:
                break
        blank += 1
    file.seek(0)
    return first, alone, more


_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 2**16


class _Broken(Exception):
    """The text is not JSON."""


class _Text:
    """A JSON document that is read piece by piece, as its values are asked for, and knows the line of each."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.valid = True
        """Whether all so far was UTF-8; bytes that are none become lone surrogates."""
        self.text, self.at, self.ended = "", 0, False
        self._line, self._counted = 1, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode = json.JSONDecoder().raw_decode
        self._more()
        self.text = self.text.removeprefix("\ufeff")

    @property
    def line(self) -> int:
        """Line of the place that was reached."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def _more(self) -> bool:
        """Read on, and forget what lies behind; whether there was more."""
        _ = self.line
        # Twice as much as is waiting: a long value is tried a few times, not once for each chunk.
        raw = self.file.read(max(_CHUNK, len(self.text) - self.at))
        new = self._decoder.decode(raw, final=not raw)
        self.valid = self.valid and is_unicode(new)
        self.text = self.text[self.at :] + new
        self.at = self._counted = 0
        self.ended = not raw
        return bool(raw)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def step(self) -> None:
        """Over the next character."""
        self.peek()
        self.at += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text. Raises: _Broken where there is none, DataError beyond ROW_BYTES."""
        self.peek()
        while True:
            fault: Exception | None = None
            try:
                value, end = self._decode(self.text, self.at)
            except json.JSONDecodeError as error:
                fault = error
            except (ValueError, RecursionError) as error:
                raise _Broken(str(error)) from error
            # A number may go on in the next piece, and a value that cannot be read may be whole with it.
            if fault is None and (end < len(self.text) or self.ended):
                text = self.text[self.at : end]
                self.at = end
                return value, text
            if self.ended:
                raise _Broken(getattr(fault, "msg", "it ends early")) from fault
            if len(self.text) - self.at > ROW_BYTES:
                raise too_long("the row", self.path, self.line)
            self._more()


class _Shape:
    """What a JSON document holds, found by reading it once."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.lists: list[str] = []
        """Keys of an object whose values are lists of objects; `a.b` for the key b of an object under a."""
        self.others = 0
        """Values of the object that are neither such lists nor objects."""
        self.objects = 0
        file.seek(0)
        text = _Text(file, path)
        try:
            self._look(text)
            self.is_json = text.peek() == ""
        except (_Broken, RecursionError):
            self.is_json = False

    @property
    def wraps(self) -> list[str]:
        """Keys of the lists of rows: those of training, else the ones that are named as held out."""
        return [key for key in self.lists if _last(key) in WRAPPERS] or [
            key for key in self.lists if _last(key) in HELDOUT_NAMES
        ]

    @property
    def parted(self) -> bool:
        """Whether it holds lists of rows under the names of parts."""
        return any(_last(key) in (*TRAIN_NAMES, *HELDOUT_NAMES) for key in self.lists)

    @property
    def keyed(self) -> bool:
        """Whether each value of the object is a row."""
        return bool(self.objects) and not self.others and not self.lists

    def _look(self, text: _Text) -> None:
        if text.peek() == "[":
            for _ in _elements(text):
                text.value()
            return
        if text.peek() != "{":
            text.value()
            return
        for key in _keys(text):
            self._look_at(text, key, deeper=key in WRAPPERS)

    def _look_at(self, text: _Text, key: str, deeper: bool) -> None:
        if text.peek() == "[":
            kinds = {isinstance(text.value()[0], dict) for _ in _elements(text)}
            if kinds != {False}:
                self.lists.append(key)
            else:
                self.others += 1
        elif text.peek() == "{" and deeper:
            before = len(self.lists)
            for inner in _keys(text):
                self._look_at(text, f"{key}.{inner}", deeper=False)
            self.objects += len(self.lists) == before
        elif isinstance(text.value()[0], dict):
            self.objects += 1
        else:
            self.others += 1


def _last(key: str) -> str:
    return key.rpartition(".")[2].lower()


def _elements(text: _Text) -> Iterator[None]:
    """Stops at each element of the list that begins here, which the caller reads."""
    text.step()
    closed = text.peek() == "]"
    while not closed:
        yield
        closed = text.peek() == "]"
        if not closed:
            if text.peek() != ",":
                raise _Broken("no ',' after the row")
            text.step()
    text.step()


def _keys(text: _Text) -> Iterator[str]:
    """Keys of the object that begins here, at each of whose values it stops."""
    text.step()
    closed = text.peek() == "}"
    while not closed:
        key, _ = text.value()
        if not isinstance(key, str) or text.peek() != ":":
            raise _Broken("no key")
        text.step()
        text.peek()
        yield key
        closed = text.peek() == "}"
        if not closed:
            if text.peek() != ",":
                raise _Broken("no ',' after the value")
            text.step()
            if text.peek() == "}":
                raise _Broken("no key after the ','")
    text.step()


class _Scan:
    """Rows of a JSON document, one by one."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.text, self.path = _Text(file, path), path

    def list_rows(self) -> Iterator[Row]:
        """Rows of a document that is a list."""
        try:
            for _ in _elements(self.text):
                yield self._row()
            if self.text.peek():
                raise _Broken("text after the list")
        except _Broken as error:
            what = "the JSON list ends early or is broken: how many rows are lost cannot be known"
            mend = "write the file again, or turn it into JSON Lines"
            raise DataError(f"{what} ({error})", where=f"{self.path}:{self.text.line}", mend=mend) from error

    def object_rows(self, shape: _Shape) -> Iterator[Row]:
        """Rows of an object {key: row} or {"data": [row]}; any other object is one row. Rows under names such as `test`
        beside those of training are held out; lists of other names are bad rows. The document is valid JSON."""
        if not shape.wraps and not shape.keyed:
            yield self._row()
            return
        for key in _keys(self.text):
            if key in shape.lists or not shape.wraps:
                yield from self._rows_of(key, shape)
            elif self.text.peek() == "{" and any(name.startswith(f"{key}.") for name in shape.lists):
                for inner in _keys(self.text):
                    yield from self._rows_of(f"{key}.{inner}", shape)
            else:
                self.text.value()

    def _rows_of(self, key: str, shape: _Shape) -> Iterator[Row]:
        """What stands under a key, as far as it is rows."""
        if not shape.wraps:
            yield self._row()
        elif key not in shape.lists:
            self.text.value()
        elif key in shape.wraps:
            for _ in _elements(self.text):
                yield self._row()
        else:
            for _ in _elements(self.text):
                row = self._row()
                if _last(key) in HELDOUT_NAMES:
                    yield row._replace(heldout=True)
                else:
                    fault = f"a row under '{key[:40]}', which is neither a part to train on nor one to hold out"
                    yield row._replace(fault=row.fault or fault)

    def _row(self) -> Row:
        """The value that begins here, as a row."""
        self.text.peek()
        line = self.text.line
        value, text = self.text.value()
        whole = self.text.valid or is_unicode(text)
        return Row(line, value) if whole else Row(line, text[:1000], NOT_UTF8)
