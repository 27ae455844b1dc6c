"""Files to the records of one stage: load, quarantine, view by schema, split. Torch-free."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from core.config.data_schema import DataConfig
from core.data.dialects import Dialect, detect
from core.data.draws import shuffled
from core.data.files import NEEDS, find_files
from core.data.formats import BUILT_IN, Formats
from core.data.placeholders import placeholder_warnings
from core.data.readers.hub import read_hub
from core.data.readers.rows import Row
from core.data.record_store import RecordWriter, StoredRecords, hash_keys
from core.data.records import BadRow, Message, Record, excerpt, fingerprint
from core.data.split import split_for
from core.data.streaming import is_streamed, stream_records
from core.data.turns import RowError
from core.errors import DataError

SAMPLE_ROWS = 50
"""Rows that a dialect is found from."""

_LOOKED_AT = 10_000
"""Records kept on disk that are looked at for placeholders."""

NAME_COLUMNS = (
    "say which column holds what, e.g. data.columns={prompt: …, completion: …}, or name the layout with "
    "data.dialect=…; docs/data.md lists fields and layouts"
)


@dataclass(frozen=True)
class Loaded:
    """Records of one or several files, in their order."""

    records: list[Record]
    quarantined: list[BadRow]
    dialects: dict[str, Dialect]
    """By file; files hold one dialect each."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the records' content."""
        return fingerprint(self.records)

    @property
    def dialect(self) -> Dialect:
        """The first file's."""
        return next(iter(self.dialects.values()))

    @property
    def files(self) -> list[str]:
        """Names relative to the folder."""
        return list(self.dialects)


@dataclass(frozen=True)
class Dataset:
    """What a stage trains on and is judged by."""

    train: Sequence[Record]
    heldout: Sequence[Record]
    """Records of the same schema; no prompt of theirs is in `train`."""
    heldout_prompts: Sequence[Record]
    """Held-out prompts to generate for, each once, with `answer` where they have one; empty for raw text."""
    info: dict[str, Any]
    """JSON values for the plan."""
    quarantined: list[BadRow] = field(default_factory=list)
    """Rows that became no record."""
    set_aside: list[BadRow] = field(default_factory=list)
    """Records that a check of `data.transforms` dropped; nothing is wrong with their rows."""
    warnings: list[str] = field(default_factory=list)
    brings_heldout: bool = False
    """Whether the held-out records are those that the data names, and not drawn from its rows."""


# 1. Load.


def load_records(
    files: Sequence[Path] | str,
    columns: Mapping[str, str] | None = None,
    max_bad_frac: float = 0.05,
    root: Path | None = None,
    dialect: str | None = None,
    formats: Formats = BUILT_IN,
    into: RecordWriter | None = None,
) -> Loaded:
    """Read files (or the hub dataset of that name), find the dialect of each, and put the bad rows aside.

    columns: canonical field to column, where the names do not say it.
    dialect: name of the dialect that all rows have, where it should not be found from them.
    max_bad_frac: share of bad rows, 0..1, above which it is an error.
    root: folder that file names are told relative to; the files' own folders when unset.
    formats: readers and dialects.
    into: takes the records one by one instead of the list.
    Raises: DataError when no row can be used, when a file is damaged, and when too many rows are bad; ConfigError for
        unknown fields in `columns`.
    """
    if isinstance(files, str):
        sources: Iterable[tuple[str, str, Iterator[Row]]] = [(files, files, read_hub(files))]
    else:
        sources = (
            (file.relative_to(root).as_posix() if root else file.name, str(file), formats.readers.rows(file))
            for file in files
        )
    find = partial(detect, columns=columns or {}, specs=formats.dialects, wanted=dialect)
    listed: list[Record] = []
    records = listed if into is None else into
    bad: list[BadRow] = []
    dialects: dict[str, Dialect] = {}
    faults: list[DataError] = []
    for name, where, rows in sources:
        try:
            dialects[name] = _load_file(rows, name, where, find, columns or {}, records=records, bad=bad)
        except _Unusable as error:
            faults.append(error)
    if not records and faults:
        raise faults[0]
    total = len(records) + len(bad)
    if len(bad) > max_bad_frac * total:
        first = "; ".join(str(row) for row in bad[:3])
        what = f"{len(bad)} of {total} rows cannot be used ({len(bad) / total:.1%}, data.max_bad_frac={max_bad_frac})"
        mend = "correct these rows, name the columns with data.columns={…}, or raise data.max_bad_frac"
        raise DataError(what, where=first, mend=mend)
    return Loaded(listed, bad, dialects)


class _Unusable(DataError):
    """No row of the file can be used; its rows are among the bad ones."""


Find = Callable[[Sequence[Mapping[str, Any]]], Dialect | None]
"""Objects to the dialect that they have."""


def _load_file(
    rows: Iterator[Row],
    name: str,
    where: str,
    find: Find,
    columns: Mapping[str, str],
    *,
    records: list[Record] | RecordWriter,
    bad: list[BadRow],
) -> Dialect:
    """Append the file's records and bad rows; returns its dialect. Rows are read one by one."""
    counts = len(records), len(bad)
    sampled, dialect, fault = _sample(rows, where, find, columns)
    for line, value, reason in chain(sampled, rows):
        why = reason or ("" if type(value) is dict else "not an object") or (fault.what if fault else "")
        if dialect is not None and not why:
            try:
                made = dialect.records(value, {"file": name, "line": line, "source": where})
            except RowError as error:
                why = error.reason
            else:
                for record in made:
                    records.append(record)
                if made:
                    continue
                why = "the row holds nothing to learn from"
        bad.append(BadRow(name, line, why, excerpt(value)))
    if dialect is None:
        raise fault or _Unusable("the file holds no rows", where, "point data.path at a file that is not empty")
    if len(records) == counts[0]:
        faults = bad[counts[1] :]
        what = f"none of the {len(faults)} rows can be used"
        raise _Unusable(what, "; ".join(str(row) for row in faults[:3]), NAME_COLUMNS)
    return dialect


def _sample(
    rows: Iterator[Row], where: str, find: Find, columns: Mapping[str, str]
) -> tuple[list[Row], Dialect | None, _Unusable | None]:
    """Rows up to the first SAMPLE_ROWS objects, and the dialect that these show or why all rows show none. More rows,
    where they show none or lack one of the columns asked for. Raises: DataError where the columns are not there."""
    read: list[Row] = []
    objects: list[dict[str, Any]] = []
    known: dict[str, None] = {}
    lost: list[str] = []
    while True:
        wanted = 2 * len(objects) or SAMPLE_ROWS
        for row in rows:
            read.append(row)
            if row.fault is None and type(row.value) is dict:
                objects.append(row.value)
                if len(objects) == wanted:
                    break
        dialect = find(objects)
        known = dict.fromkeys(column for value in objects for column in value)
        lost = [column for column in columns.values() if column not in known]
        if dialect is not None and not lost:
            return read, dialect, None
        if len(objects) < wanted:
            break
    if not read:
        return [], None, _Unusable("the file holds no rows", where, "point data.path at a file that is not empty")
    if not objects:
        first = "; ".join(f"line {row.line}: {row.fault or 'not an object'}" for row in read[:3])
        mend = "each row must be a JSON object, each text in UTF-8"
        return read, None, _Unusable(f"none of the {len(read)} rows can be read", f"{where}: {first}", mend)
    names = ", ".join(str(column)[:40] for column in list(known)[:20]) or "none"
    if lost:
        near = difflib.get_close_matches(lost[0], known, 1)
        what = f"'data.columns' names '{lost[0]}', the columns are {names}"
        raise DataError(what, where, f"use '{near[0]}'" if near else "name one of these columns")
    asked = f" with data.columns={dict(columns)}" if columns else ""
    return read, None, _Unusable(f"no known layout fits the columns {names}{asked}", where, NAME_COLUMNS)


# 2. Views by schema.


def as_schema(records: Iterable[Record], schema: str, dialects: Iterable[Dialect] = ()) -> list[Record]:
    """The records that serve a schema (one of core.platform.specs.SCHEMAS), with the fields that it asks for.

    sft: a preference pair serves with its chosen completion, of several records of one row the first alone; a record
        labelled bad does not serve.
    corpus: raw text serves, and what serves sft.
    prompts: every record with a prompt serves, equal prompts once, the one with an answer before the others.
    feedback: completions of any label and pairs serve as they are.
    dialects: those that were found, for the message.
    Raises: DataError when no record serves.
    """
    if schema not in NEEDS:
        raise ValueError(f"schema must be one of {', '.join(NEEDS)}, got {schema!r}")
    if schema == "prompts":
        served = prompts_of(records)
    else:
        served = [kept for record in records if (kept := serving(record, schema)) is not None]
    if not served:
        raise none_serves(schema, dialects)
    return served


def serving(record: Record, schema: str) -> Record | None:
    """What the schemas that look at records one by one take of a record; None where it does not serve."""
    if schema == "corpus" and record.text is not None:
        return record
    if schema in ("sft", "corpus"):
        if record.completion is not None and record.label is not False and record.prompt:
            return record
        if record.chosen is not None and not record.meta.get("part"):
            return replace(record, completion=record.chosen, chosen=None, rejected=None, margin=None)
        return None
    if schema == "feedback":
        return record if record.prompt and (record.completion or record.chosen) else None
    serves = record.text is not None if schema == "text" else record.chosen is not None and record.rejected is not None
    return record if serves else None


def none_serves(schema: str, dialects: Iterable[Dialect] = ()) -> DataError:
    """The error for records of which none serves the schema."""
    found = "; ".join(f"'{dialect.name}' with the columns {', '.join(dialect.columns)}" for dialect in dialects)
    return DataError(
        f"no record serves: the stage needs {NEEDS[schema]}, the rows are {found or 'of another kind'}",
        where="data.path",
        mend="take other records, or name their columns with data.columns={…}",
    )


def prompts_of(records: Iterable[Record]) -> list[Record]:
    """Prompts alone, each once, in the order of their first record."""
    found: dict[str, Record] = {}
    for record in records:
        if record.prompt:
            known = found.get(record.prompt_key)
            if known is None or (known.answer is None and record.answer is not None):
                found[record.prompt_key] = record
    return [
        Record(prompt=record.prompt, answer=record.answer, tools=record.tools, meta=record.meta)
        for record in found.values()
    ]


# 3. Everything for a stage.


def load_dataset(cfg: DataConfig, path: Path | str, schema: str, seed: int, formats: Formats = BUILT_IN) -> Dataset:
    """Training and held-out records for a stage.

    path: a file, a folder (see PARTS; `heldout.*` is the held-out part), a pattern, or a hub dataset (see HubId).
    schema: one of core.platform.specs.SCHEMAS.
    seed: draws the held-out prompts where the data brings no held-out part.
    Raises: ConfigError when there is nothing at `path`; DataError when its records cannot be read or do not serve.
    """
    files, heldout_files, root = find_files(path, schema, formats)
    load = partial(
        load_records,
        columns=cfg.columns,
        max_bad_frac=cfg.max_bad_frac,
        root=root,
        dialect=cfg.dialect,
        formats=formats,
    )
    held = load(heldout_files) if heldout_files else None
    train: Sequence[Record]
    if not isinstance(files, str) and is_streamed(cfg, files, schema):
        streamed = stream_records(cfg, files, root, schema, cfg.system, load)
        train, unfit, described, quarantined = (
            streamed.records, streamed.unfit, streamed.described, streamed.quarantined,
        )  # fmt: skip
    else:
        loaded = load(files)
        train = as_schema(loaded.records, schema, loaded.dialects.values())
        unfit, described, quarantined = len(loaded.records) - len(train), describe(loaded), loaded.quarantined
    if cfg.shuffle:
        train = _shuffled(train, seed)
    train = train[: cfg.limit]
    heldout: Sequence[Record] = []
    if held is not None:
        if cfg.folds:
            what = "data.folds holds out parts of the training rows, but the data brings a held-out part"
            mend = "leave data.folds out, or point data.path at the training file alone"
            raise DataError(what, ", ".join(held.files), mend)
        seen = {record.prompt_key for record in held.records}
        kept = _without(train, seen)
        if not kept:
            what = "every training record has a prompt of the held-out part"
            raise DataError(what, ", ".join(held.files), "take other held-out records, or remove that file")
        doubled, train = len(train) - len(kept), kept
        heldout = _serving(held.records, schema)
    brings_heldout = bool(heldout)
    if not brings_heldout:
        train, heldout = split_for(cfg, train, seed)
    prompts: Sequence[Record] = prompts_of(held.records if held is not None else heldout)
    if cfg.system:
        train, heldout, prompts = (_with_systems(part, cfg.system) for part in (train, heldout, prompts))
    digest = hashlib.sha256()
    for part in (train, heldout, prompts):
        hash_keys(digest, part)
    info: dict[str, Any] = {
        "train": {"records": len(train), "unfit": unfit, **described},
        "heldout": {"records": len(heldout), "prompts": len(prompts)},
        "quarantined": len(quarantined) + (len(held.quarantined) if held else 0),
        "fingerprint": digest.hexdigest(),
    }
    if held is not None:
        info["train"]["also_heldout"] = doubled

        info["heldout"] |= describe(held)
    quarantined = [*quarantined, *(held.quarantined if held else [])]
    looked_at = train if isinstance(train, list) else train[:_LOOKED_AT]
    return Dataset(train, heldout, prompts, info, quarantined, [], placeholder_warnings(looked_at), brings_heldout)


def _without(records: Sequence[Record], seen: set[str]) -> Sequence[Record]:
    """The records whose prompt is not among the keys `seen`."""
    if isinstance(records, StoredRecords):
        return records.without_prompts(seen)
    return [record for record in records if record.prompt_key not in seen]


def _shuffled(records: Sequence[Record], seed: int) -> Sequence[Record]:
    return records.shuffled(seed) if isinstance(records, StoredRecords) else shuffled(records, seed)


def _serving(records: Sequence[Record], schema: str) -> list[Record]:
    try:
        return as_schema(records, schema)
    except DataError:
        return []


def _with_systems(records: Sequence[Record], system: str) -> Sequence[Record]:
    """The records with a system message; those of a store have it already."""
    return records if isinstance(records, StoredRecords) else [with_system(record, system) for record in records]


def with_system(record: Record, system: str) -> Record:
    """The record with a system message before its prompt, where it has a prompt and no such message."""
    if not record.prompt or any(message.role == "system" for message in record.prompt):
        return record
    return replace(record, prompt=(Message("system", system), *record.prompt))


def describe(loaded: Loaded) -> dict[str, Any]:
    """Dialect, mapping and unused columns for the plan; by file where the files differ."""
    found = {
        name: {
            "dialect": dialect.name,
            "mapping": dialect.mapping,
            "extra_columns": [column for column in dialect.columns if column not in dialect.mapping.values()],
        }
        for name, dialect in loaded.dialects.items()
    }
    first = next(iter(found.values()))
    if all(one == first for one in found.values()):
        return {**first, "files": loaded.files}
    names = dict.fromkeys(str(one["dialect"]) for one in found.values())
    by_file = {key: {name: one[key] for name, one in found.items()} for key in ("mapping", "extra_columns")}
    return {"dialect": ", ".join(names), **by_file, "files": loaded.files}
