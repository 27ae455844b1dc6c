"""Records on disk instead of in memory: one JSON line a record, and an index of byte offsets and content hashes.

Read one by one through `StoredRecords`, a sequence of which slices and selections are sequences too. An index takes 72
bytes a record and is mapped, not loaded. Torch-free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from core.data.draws import drawn_places
from core.data.records import Message, Record, Span, Step

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 65_536
"""Keys that are hashed at once."""

_PLAIN = Record()
_DECODE: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda rows: tuple(Message(r, text, weight, tuple(calls), why) for r, text, weight, calls, why in rows),
    "spans": lambda rows: tuple(Span(*row) for row in rows),
    "steps": lambda rows: tuple(Step(*row) for row in rows),
    "calls": tuple,
    "tools": tuple,
}
"""Fields whose JSON is not their value."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Record))


def to_line(record: Record) -> bytes:
    """A record as one line of JSON; fields at their default are left out."""
    values = {name: value for name in _FIELDS if (value := getattr(record, name)) != getattr(_PLAIN, name)}
    return json.dumps(values, ensure_ascii=False, default=str, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """Counterpart of `to_line`."""
    values = json.loads(line)
    for name in values.keys() & _DECODE.keys():
        values[name] = _DECODE[name](values[name])
    return Record(**values)


class RecordWriter:
    """Stands where a list of records would: `append` puts what a stage takes of each on the disk.

    serve: a record to the one that is kept; None where the stage can do nothing with it (counted in `unfit`).
    finish: the last change to a kept record; the prompt's hash, by which records are split, is taken before it.
    """

    def __init__(
        self, folder: Path, serve: Callable[[Record], Record | None], finish: Callable[[Record], Record]
    ) -> None:
        self._serve, self._finish = serve, finish
        self._count = self.unfit = self._end = 0
        self._files = {name: (folder / name).open("wb") for name in ("rows", "offsets", "keys", "prompts")}
        self._files["offsets"].write((0).to_bytes(8, "little"))

    def __len__(self) -> int:
        return self._count

    def append(self, record: Record) -> None:
        """Keep a record."""
        self._count += 1
        served = self._serve(record)
        if served is None:
            self.unfit += 1
            return
        kept = self._finish(served)
        line = to_line(kept)
        self._end += len(line)
        self._files["rows"].write(line)
        self._files["offsets"].write(self._end.to_bytes(8, "little"))
        self._files["keys"].write(bytes.fromhex(kept.key))
        self._files["prompts"].write(bytes.fromhex(served.prompt_key))

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


class _Store:
    """The open files of a store's folder."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.folder = folder
        self._fd = os.open(folder / "rows", os.O_RDONLY)
        self.offsets = np.memmap(folder / "offsets", dtype="<u8", mode="r")
        shape = (len(self.offsets) - 1, 32)
        empty = np.zeros((0, 32), dtype=np.uint8)
        self.keys = np.memmap(folder / "keys", dtype=np.uint8, mode="r", shape=shape) if shape[0] else empty
        self.prompts = np.memmap(folder / "prompts", dtype=np.uint8, mode="r", shape=shape) if shape[0] else empty

    def __reduce__(self) -> tuple[type[_Store], tuple[Path]]:
        return _Store, (self.folder,)  # another process opens the files itself

    def read(self, row: int) -> Record:
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return from_line(os.pread(self._fd, end - start, start))

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class StoredRecords(Sequence[Record]):
    """Records of a store, each read when it is asked for. A slice is a sequence of the same kind."""

    def __init__(self, store: _Store, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    @classmethod
    def open(cls, folder: Path) -> StoredRecords:
        """All records of a folder that a RecordWriter has filled."""
        import numpy as np

        store = _Store(folder)
        return cls(store, np.arange(len(store.keys), dtype=np.uint32))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> StoredRecords: ...
    def __getitem__(self, place: int | slice) -> Record | StoredRecords:
        if isinstance(place, slice):
            return StoredRecords(self._store, self._rows[place])
        return self._store.read(int(self._rows[place]))

    def where(self, marks: Sequence[bool] | np.ndarray, value: bool = True) -> StoredRecords:
        """The records whose mark is `value`; one mark for each."""
        import numpy as np

        return StoredRecords(self._store, self._rows[np.asarray(marks, dtype=bool) == value])

    def shuffled(self, seed: int) -> StoredRecords:
        """The records in the order of their draws, as core.data.draws.shuffled puts records kept as they came."""
        import numpy as np

        places = drawn_places(self._hex(self._store.keys), seed)
        return StoredRecords(self._store, self._rows[np.argsort(places, kind="stable")])

    def without_prompts(self, seen: set[str]) -> StoredRecords:
        """The records whose prompt is not among the keys `seen`."""
        import numpy as np

        return self.where(np.fromiter((key not in seen for key in self.prompt_keys()), dtype=bool, count=len(self)))

    def prompt_keys(self) -> Iterator[str]:
        """`prompt_key` of each record, as it was before the store's last change."""
        return self._hex(self._store.prompts)

    def _hex(self, hashes: np.ndarray) -> Iterator[str]:
        """The records' rows of a table of hashes, each in hex."""
        for start in range(0, len(self), _BLOCK):
            text = hashes[self._rows[start : start + _BLOCK]].tobytes().hex()
            yield from (text[at : at + 64] for at in range(0, len(text), 64))

    @cached_property
    def fingerprint(self) -> str:
        """What `core.data.records.fingerprint` gives for the same records in memory."""
        digest = hashlib.sha256()
        hash_keys(digest, self)
        return digest.hexdigest()

    def hash_into(self, digest: Any) -> None:
        """Feed the records' keys to a hash, in order."""
        for start in range(0, len(self), _BLOCK):
            digest.update(self._store.keys[self._rows[start : start + _BLOCK]].tobytes().hex().encode())


def hash_keys(digest: Any, records: Sequence[Record]) -> None:
    """Feed the keys of records, wherever they are kept, to a hash, in order."""
    if isinstance(records, StoredRecords):
        records.hash_into(digest)
    else:
        for record in records:
            digest.update(record.key.encode())
