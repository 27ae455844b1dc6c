"""How much of a file is held at once, so that a damaged or hostile one is refused before it fills the memory.
Torch-free."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr

from core.errors import DataError

ROW_BYTES = 32 * 2**20
"""A row, a line or a document may be so long."""

TREE_BYTES = 128 * 2**20
"""A file that can only be read as a whole may be so long."""

UNPACKED_BYTES = 64 * 2**20
UNPACKED_TIMES = 500
"""A packed file that grows to more than UNPACKED_BYTES, and to more than UNPACKED_TIMES its size, is no data: text
shrinks to a tenth or so."""

_SPLIT = "write shorter rows, one a line"


def lines_of(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Lines of a file. Raises: DataError for one of more than ROW_BYTES bytes, or characters of a text, with its
    number."""
    number = 0
    while line := file.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES:
            raise too_long("the line", path, number)
        yield line


def whole(file: IO[bytes], path: Path, most: int = ROW_BYTES) -> bytes:
    """All of a file. Raises: DataError for one of more than `most` bytes."""
    raw = file.read(most + 1)
    if len(raw) > most:
        raise DataError(f"the file is one text of more than {most >> 20} MB", f"{path}:1", "cut it into several files")
    return raw


def too_long(what: str, path: Path, line: int) -> DataError:
    """The error for a line or a row of more than ROW_BYTES."""
    return DataError(f"{what} is longer than {ROW_BYTES >> 20} MB, which no row is", f"{path}:{line}", _SPLIT)


class Unpacked(io.RawIOBase):
    """What a packed file holds. Raises: DataError once that is far more than data could be."""

    def __init__(self, file: IO[bytes], packed: IO[bytes], path: Path) -> None:
        super().__init__()
        self._file, self._packed, self._path = file, packed, path
        self._count = self._lines = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; seeking is for going back to the beginning."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in what is unpacked."""
        at = self._file.seek(offset, whence)
        self._count, self._lines = at, 0
        return at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer."""
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._count += len(chunk)
        self._lines += chunk.count(b"\n")
        if self._count > UNPACKED_BYTES and self._count > UNPACKED_TIMES * self._packed.tell():
            what = f"the file unpacks to more than {UNPACKED_TIMES} times its size, which no data does"
            raise DataError(what, f"{self._path}:{self._lines + 1}", "unpack it and look at it, or leave it out")
        return len(chunk)
