"""The rows of a build on the disk: a line of JSON each, which proves its place and its content.

A line is `{"place": …, "row": {…}, "checksum": …}`. The checksum is over the build's key, the place and the row, so
that neither a damaged line nor one of another place or build is taken for what it is not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import disk_guard, write_text
from core.jsonl import append_whole, line_of

Row = dict[str, Any]


class RowFile:
    """The whole batches of a build that are in a file.

    batches: rows of each batch of a build of `count` rows, by the place of its first one, as they are read back.
    damaged: whether lines were altered, lost, or stand where they were not written.
    """

    def __init__(self, path: Path, key: str, count: int, batch_size: int) -> None:
        self._path, self._key, self._count, self._size = path, key, count, batch_size
        self.batches: dict[int, list[Row]] = {}
        self.damaged = False
        if path.is_file():
            self._read()

    def rows(self) -> list[Row]:
        """All rows in order, of the batches that are there."""
        return [row for start in sorted(self.batches) for row in self.batches[start]]

    def missing(self) -> list[int]:
        """Places of the first rows of the batches that are not there."""
        return [start for start in range(0, self._count, self._size) if start not in self.batches]

    def add(self, start: int, made: Sequence[Mapping[str, Any]]) -> None:
        """Keep a batch. Raises ArtifactError when the disk refuses; no part of the batch is left then."""
        lines = b"".join(self._line(start + number, row) for number, row in enumerate(made))
        with disk_guard(self._path), io.FileIO(self._path, "a") as file:
            append_whole(file, lines, self._path)
            os.fsync(file.fileno())
        # As they are read back: a row is the same whether it was made in this run or in an earlier one.
        self.batches[start] = [json.loads(line_of(row)) for row in made]

    def put_in_order(self) -> None:
        """Rewrite the file where batches were made anew behind later ones."""
        if self.damaged:
            self._write()
            self.damaged = False

    def _line(self, place: int, row: Mapping[str, Any]) -> bytes:
        digest = hashlib.sha256(f"{self._key} {place} ".encode() + line_of(row))
        return line_of({"place": place, "row": row, "checksum": digest.hexdigest()[:32]})

    def _read(self) -> None:
        """Take the whole batches; what a killed process left of a further one is cut off, and so is what is damaged."""
        with disk_guard(self._path):
            *lines, torn = self._path.read_bytes().split(b"\n")
        found: dict[int, Row] = {}
        for number, line in enumerate(lines):
            place, row = self._proved(line + b"\n")
            if row is not None:
                found[place] = row
            self.damaged |= place != number
        if torn:
            lines.append(torn)
        for start in range(0, self._count, self._size):
            places = range(start, min(start + self._size, self._count))
            if all(place in found for place in places):
                self.batches[start] = [found[place] for place in places]
        if len(lines) != sum(map(len, self.batches.values())) or self.damaged:
            self._write()

    def _proved(self, line: bytes) -> tuple[int, Row | None]:
        """Place and row of a line that is byte for byte what was written; no row of another one."""
        try:
            value = json.loads(line)
            place, row = value["place"], value["row"]
        except (ValueError, RecursionError, LookupError, TypeError):
            return -1, None
        good = type(place) is int and 0 <= place < self._count and isinstance(row, dict)
        return (place, row) if good and self._line(place, row) == line else (-1, None)

    def _write(self) -> None:
        lines = (
            self._line(start + number, row)
            for start in sorted(self.batches)
            for number, row in enumerate(self.batches[start])
        )
        write_text(self._path, b"".join(lines).decode())
