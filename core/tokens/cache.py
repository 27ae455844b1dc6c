"""Token ids on disk: written shard by shard, found again by the hash of all they depend on, read through memory maps.

A cache folder holds a folder for each shard of up to SHARD_ROWS records, written beside and renamed into place. So an
interrupted tokenisation goes on with the first shard that is missing, and memory holds one shard at a time. A shard
proves itself by the checksums of its files; one that does not is told and made anew. Torch-free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

from core.data.records import Record
from core.files import atomic_folder, sha256_file
from core.proof import read_record, write_record
from core.tokens.examples import Demonstration

if TYPE_CHECKING:
    import numpy as np

SHARD_ROWS = 4096
"""Records of one shard; at 500 tokens each it takes 4 MB."""
SHARD_VERSION = 2
_ARRAYS = ("ids", "starts", "runs", "values", "source")

Made: TypeAlias = "list[Demonstration] | str"
"""The examples of one record; a text says why there is none."""
Encode: TypeAlias = "Callable[[Sequence[Record]], Sequence[Made]]"


@dataclass(frozen=True)
class Shard:
    """Examples of a run of records.

    ids: of all its tokens, one after the other; starts: where each example begins, and the end of the last.
    runs, values: where each run of tokens of one weight begins, and that weight.
    sources, source: names, and the index of each example's among them.
    refused: (place of the record among the shard's records, reason).
    """

    ids: np.ndarray
    starts: np.ndarray
    runs: np.ndarray
    values: np.ndarray
    sources: list[str]
    source: np.ndarray
    refused: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def example(self, place: int) -> Demonstration:
        """The example at `place`, its lists in memory."""
        import numpy as np

        start, end = self.starts[place], self.starts[place + 1]
        first, last = np.searchsorted(self.runs, start, "right") - 1, np.searchsorted(self.runs, end, "left")
        lengths = np.diff(np.append(self.runs[first:last], end).clip(min=start))
        weights = np.repeat(self.values[first:last], lengths).tolist()
        return Demonstration(self.ids[start:end].tolist(), weights, self.sources[self.source[place]])


class TokenShards(Sequence["Demonstration"]):
    """The examples of all shards, read from the disk one by one. A slice is a list."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        self._ends = list(accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Demonstration: ...
    @overload
    def __getitem__(self, place: slice) -> list[Demonstration]: ...
    def __getitem__(self, place: int | slice) -> Demonstration | list[Demonstration]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        count = len(self)
        if not -count <= place < count:
            raise IndexError(place)
        place %= count
        number = bisect_right(self._ends, place)
        return self.shards[number].example(place - (self._ends[number - 1] if number else 0))

    @cached_property
    def token_counts(self) -> bytes:
        """Tokens of each example as unsigned 32-bit numbers, for orders by length."""
        import numpy as np

        return b"".join(np.diff(shard.starts).astype(np.uint32).tobytes() for shard in self.shards)


def cached_tokens(
    folder: Path,
    records: Sequence[Record],
    encode: Encode,
    said: Callable[[int, int], None],
    warned: Callable[[str], None] = lambda _: None,
) -> tuple[TokenShards, list[tuple[int, str]]]:
    """The records' examples out of `folder`; shards that are missing or damaged there are made.

    said: told the records done and their number after each shard that had to be made. warned: told of a damaged one.
    Returns the examples, and (place, reason) of each record that has none.
    """
    shards: list[Shard] = []
    refused: list[tuple[int, str]] = []
    for start in range(0, len(records), SHARD_ROWS):
        place = folder / f"{start // SHARD_ROWS:06d}"
        end = min(start + SHARD_ROWS, len(records))
        fault = shard_fault(place, end - start)
        if fault is not None:
            if place.exists():
                warned(f"cached tokens are damaged and made anew: {place}: {fault}")
            _write(place, encode(list(records[start:end])))
            said(end, len(records))
        shard = _open(place)
        shards.append(shard)
        refused += [(start + row, reason) for row, reason in shard.refused]
    return TokenShards(shards), refused


def _write(place: Path, made: Sequence[Made]) -> None:
    import numpy as np

    kept = [example for examples in made if not isinstance(examples, str) for example in examples]
    sources = sorted({example.source for example in kept})
    number = {source: index for index, source in enumerate(sources)}
    ids = np.fromiter((token for example in kept for token in example.ids), dtype=np.uint32)
    weights = np.fromiter((weight for example in kept for weight in example.weights), dtype=np.float64)
    runs = np.flatnonzero(np.diff(weights, prepend=np.nan))
    arrays = {
        "ids": ids.astype(np.uint16) if ids.max(initial=0) < 2**16 else ids,
        "starts": np.cumsum([0, *(example.tokens for example in kept)], dtype=np.int64),
        "runs": runs,
        "values": weights[runs],
        "source": np.array([number[example.source] for example in kept], dtype=np.uint32),
    }
    with atomic_folder(place) as part:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        refused = [(row, reason) for row, reason in enumerate(made) if isinstance(reason, str)]
        facts = {"records": len(made), "examples": len(kept), "sources": sources, "refused": refused}
        files = {name: sha256_file(part / f"{name}.npy") for name in _ARRAYS}
        write_record(part / "shard.json", {"version": SHARD_VERSION, "of": _name(place), **facts, "files": files})


def _name(place: Path) -> str:
    """Key and number of a shard, which tell what it holds."""
    return f"{place.parent.name}/{place.name}"


def shard_fault(place: Path, records: int) -> str | None:
    """Why the folder `place` holds no whole shard of so many records; None where it does."""
    try:
        facts = read_record(place / "shard.json", proved_since=0)
        for name in _ARRAYS:
            if sha256_file(place / f"{name}.npy") != facts["files"][name]:
                return f"{name}.npy does not match its checksum"
        if (facts["of"], facts["records"]) != (_name(place), records):
            return f"it holds {facts['records']} records of {facts['of']}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _open(place: Path) -> Shard:
    """The whole shard at `place`."""
    import numpy as np

    facts = read_record(place / "shard.json", proved_since=0)
    ids = np.load(place / "ids.npy", mmap_mode="r")
    rest = {name: np.load(place / f"{name}.npy") for name in _ARRAYS[1:]}
    return Shard(ids, **rest, sources=facts["sources"], refused=[(row, reason) for row, reason in facts["refused"]])
