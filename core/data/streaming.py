"""The records of a stage kept on disk, for files that memory should not hold. Torch-free.

One pass over the files validates every row, puts bad ones aside and writes what the stage takes into the cache; the
next run with the same files finds it there by their hash. Splits and fingerprint equal those of records in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import core
from core.data.formats import Formats
from core.data.loading import describe
from core.data.readers import PACKED
from core.data.record_store import RecordWriter, StoredRecords, from_line, to_line
from core.data.records import BadRow, Record
from core.data.views import none_serves, serving, with_system
from core.files import atomic_folder, cache_dir, sha256_file, write_json
from core.settings.data_schema import Choice, DataConfig

STREAM_BYTES = 16 * 2**20
"""data.stream=auto keeps the records of more bytes of files than this on disk. In memory they take about fifteen times
as much."""

_GROWTH = {".parquet": 4, **dict.fromkeys(PACKED, 8)}
"""How many times the bytes of a packed file count."""

VERSION = 2
"""Of what is stored and of how rows are read; another one is another folder."""

STREAMED = ("sft", "text", "preference")
"""Schemas whose records serve one by one, and are read once, when they become tokens."""


@dataclass(frozen=True)
class Served:
    """Records that serve a stage, and what was found on the way."""

    records: Sequence[Record]
    unfit: int
    described: dict[str, Any]
    quarantined: list[BadRow]
    heldout: list[Record]
    """Those of rows that the files hold out themselves."""
    warnings: list[str]


def is_streamed(cfg: DataConfig, files: Sequence[Path] | str, schema: str) -> bool:
    """Whether the records of these files are kept on disk."""
    if isinstance(files, str) or schema not in STREAMED or cfg.stream is Choice.never:
        return False
    size = sum(file.stat().st_size * _GROWTH.get(file.suffix.lower(), 1) for file in files)
    return cfg.stream is Choice.always or size > STREAM_BYTES


def stream_records(
    cfg: DataConfig, files: Sequence[Path], root: Path | None, schema: str, system: str | None, load: partial[Any]
) -> Served:
    """The records of the files that serve `schema`, from the cache or by one pass over the files.

    load: core.data.loading.load_records with everything but the files and `into`.
    Raises what `core.data.loading.load_records` and `as_schema` raise.
    """
    folder = cache_dir() / "records" / _key(cfg, files, root, schema, load.keywords["formats"])
    if not (folder / "store.json").is_file():
        _write(folder, files, schema, system, load)
    facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    bad = [BadRow(**row) for row in facts["quarantined"]]
    heldout = [from_line(line.encode()) for line in facts["heldout"]]
    return Served(StoredRecords.open(folder), facts["unfit"], facts["described"], bad, heldout, facts["warnings"])


def _write(folder: Path, files: Sequence[Path], schema: str, system: str | None, load: partial[Any]) -> None:
    def serve(record: Record) -> Record | None:
        return serving(record, schema)

    def finish(record: Record) -> Record:
        return with_system(record, system) if system else record

    with atomic_folder(folder) as part:
        with RecordWriter(part, serve, finish) as writer:
            loaded = load(files, into=writer)
        if writer.unfit == len(writer):
            raise none_serves(schema, loaded.dialects.values())
        facts = {
            "version": VERSION,
            "unfit": writer.unfit,
            "described": describe(loaded),
            "quarantined": [dataclasses.asdict(row) for row in loaded.quarantined],
            "heldout": [to_line(record).decode() for record in loaded.heldout],
            "warnings": loaded.warnings,
        }
        write_json(part / "store.json", facts)


def _key(cfg: DataConfig, files: Sequence[Path], root: Path | None, schema: str, formats: Formats) -> str:
    """Hash of all that the stored records depend on, 24 hex digits."""
    parts: Mapping[str, Any] = {
        "files": [[str(file.relative_to(root) if root else file.name), sha256_file(file)] for file in files],
        "columns": dict(cfg.columns),
        "dialect": cfg.dialect,
        "max_bad_frac": cfg.max_bad_frac,
        "schema": schema,
        "system": cfg.system,
        "formats": [
            [dialect.name for dialect in formats.dialects],
            sorted((suffix, spec.impl) for suffix, spec in formats.readers.by_suffix.items()),
        ],
        "code": [core.__version__, VERSION],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
