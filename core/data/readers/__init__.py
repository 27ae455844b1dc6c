"""Files to rows, one at a time and with line numbers. Torch-free; a format's code loads when a file asks for it.

A reader yields a `Row` for every row of the file, also for those that cannot be read: these carry a fault.
"""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from core.data.readers.bounds import Unpacked
from core.data.readers.rows import Row
from core.errors import DataError, PreftuneError
from core.platform.specs import ReaderSpec

BUILT_IN: tuple[ReaderSpec, ...] = (
    ReaderSpec("json", (".json", ".jsonl", ".ndjson"), "core.data.readers.json_rows:read_json",
               "JSON Lines, a list of rows, or an object of rows"),
    ReaderSpec("delimited", (".csv", ".tsv"), "core.data.readers.delimited:read_delimited",
               "CSV and TSV, with a header or without"),
    ReaderSpec("parquet", (".parquet",), "core.data.readers.parquet:read_parquet", "Parquet"),
    ReaderSpec("text", (".txt",), "core.data.readers.text:read_lines", "one text a line"),
    ReaderSpec("document", (".md", ".rst"), "core.data.readers.text:read_document", "one text a file", documents=True),
    ReaderSpec("xml", (".xml",), "core.data.readers.xml_rows:read_xml", "elements with text side by side, as rows"),
)  # fmt: skip
"""The formats that need no plugin."""

PACKED = (".gz", ".zst")
"""Endings of compressed files; they may stand behind that of any format."""

_BUFFER = 1 << 17

Reader = Callable[[IO[bytes], Path], Iterator[Row]]


def _import(spec: ReaderSpec) -> Reader:
    module, _, name = spec.impl.partition(":")
    return cast(Reader, getattr(importlib.import_module(module), name))


@dataclass(frozen=True)
class Readers:
    """The formats that a run can read."""

    by_suffix: Mapping[str, ReaderSpec]
    load: Callable[[ReaderSpec], Any] = _import
    """Imports what a spec names; raises PluginError where that fails."""

    @classmethod
    def of(cls, specs: tuple[ReaderSpec, ...]) -> Readers:
        """Readers by suffix."""
        return cls({suffix: spec for spec in specs for suffix in spec.suffixes})

    def spec(self, path: Path) -> ReaderSpec | None:
        """The format of a file, by its name."""
        return self.by_suffix.get(data_suffix(path))

    def reads(self, path: Path) -> bool:
        """Whether `path` is a file of records."""
        return self.spec(path) is not None and not path.name.startswith(".") and path.is_file()

    @property
    def known(self) -> str:
        """The suffixes, for messages."""
        return f"{', '.join(sorted(self.by_suffix))} (also with {' or '.join(PACKED)})"

    def rows(self, path: Path) -> Iterator[Row]:
        """Rows of one file, streamed; the format follows from the name.

        Raises: DataError for an unknown format, and for a file that is damaged in such a way that rows would be lost
            without anyone knowing how many.
        """
        spec = self.spec(path)
        if spec is None:
            raise DataError(f"no reader for '{path.name}'", where=str(path), mend=f"use one of {self.known}")
        read = self.load(spec)
        try:
            with path.open("rb") as raw, unpacked(raw, path) as file:
                yield from read(file, path)
        except PreftuneError:
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, error) from error
        except OSError as error:
            raise DataError(f"cannot read the file: {error}", where=str(path), mend="check the file") from error
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise _damaged(path, error) from error
            what = f"the reader '{spec.name}' fails: {type(error).__name__}: {error}"
            raise DataError(what, str(path), "check the file, or repair the plugin that reads it") from error


BUILT_IN_READERS = Readers.of(BUILT_IN)


def data_suffix(path: Path) -> str:
    """The suffix that names the format, in lower case and without that of a compression."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def unpacked(raw: IO[bytes], path: Path) -> IO[bytes]:
    """The file's content, decompressed where its name says that it is compressed; can be rewound."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return _guarded(cast(IO[bytes], gzip.GzipFile(fileobj=raw)), raw, path)
    if suffix == ".zst":
        try:
            from compression import zstd  # Python 3.14
        except ImportError:
            from backports import zstd

        return _guarded(cast(IO[bytes], zstd.ZstdFile(raw)), raw, path)
    return raw


def _guarded(file: IO[bytes], packed: IO[bytes], path: Path) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(Unpacked(file, packed, path), _BUFFER))


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"the file ends early or is damaged ({error})", str(path), "copy or download it again")
