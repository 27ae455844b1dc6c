"""Files to records: read, find the dialect of each, put bad rows aside. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from core.data.dialects import Dialect, detect
from core.data.formats import BUILT_IN, Formats
from core.data.readers.hub import read_hub
from core.data.readers.rows import Row
from core.data.record_store import RecordWriter
from core.data.records import BadRow, Record, excerpt, fingerprint
from core.data.turns import RowError
from core.errors import DataError
from core.settings.data_schema import COLUMNS, DATA_PATH
from core.suggest import did_you_mean

SAMPLE_ROWS = 50
"""Rows that a dialect is found from."""

NAME_COLUMNS = (
    "say which column holds what, e.g. {key}={{prompt: …, completion: …}}, or name the layout with {part}.dialect=…; "
    "docs/data.md lists fields and layouts"
)
"""How to mend, as a template of an error whose key is COLUMNS."""


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


def load_records(
    files: Sequence[Path] | str,
    columns: Mapping[str, str] | None = None,
    max_bad_frac: float = 0.05,
    root: Path | None = None,
    dialect: str | None = None,
    formats: Formats = BUILT_IN,
    into: RecordWriter | None = None,
    key: str = DATA_PATH,
) -> Loaded:
    """Read files (or the hub dataset of that name), find the dialect of each, and put the bad rows aside.

    columns: canonical field to column, where the names do not say it.
    dialect: name of the dialect that all rows have, where it should not be found from them.
    max_bad_frac: share of bad rows, 0..1, above which it is an error.
    root: folder that file names are told relative to; the files' own folders when unset.
    formats: readers and dialects.
    into: takes the records one by one instead of the list.
    key: the setting that names the files.
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
        raise faults[0].at(key) if faults[0].key == DATA_PATH else faults[0]
    total = len(records) + len(bad)
    if len(bad) > max_bad_frac * total:
        first = "; ".join(str(row) for row in bad[:3])
        what = f"{len(bad)} of {total} rows cannot be used ({len(bad) / total:.1%}, data.max_bad_frac={max_bad_frac})"
        mend = "correct these rows, name the columns with {key}={{…}}, or raise data.max_bad_frac"
        raise DataError(what, "{first}", mend, key=COLUMNS, first=first)
    return Loaded(listed, bad, dialects)


class _Unusable(DataError):
    """No row of the file can be used; its rows are among the bad ones."""


def _no_rows(where: str) -> _Unusable:
    mend = "point {key} at a file that is not empty"
    return _Unusable("the file holds no rows", "{place}", mend, key=DATA_PATH, place=where)


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
        raise fault or _no_rows(where)
    if len(records) == counts[0]:
        faults = bad[counts[1] :]
        first = "; ".join(str(row) for row in faults[:3])
        raise _Unusable(
            f"none of the {len(faults)} rows can be used", "{first}", NAME_COLUMNS, key=COLUMNS, first=first
        )
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
        return [], None, _no_rows(where)
    if not objects:
        first = "; ".join(f"line {row.line}: {row.fault or 'not an object'}" for row in read[:3])
        mend = "each row must be a JSON object, each text in UTF-8"
        return read, None, _Unusable(f"none of the {len(read)} rows can be read", f"{where}: {first}", mend)
    names = ", ".join(str(column)[:40] for column in list(known)[:20]) or "none"
    if lost:
        near = did_you_mean(lost[0], map(str, known))
        raise DataError(
            "'{key}' names '{lost}', the columns are {names}{near}", "{place}", "name one of these columns",
            key=COLUMNS, lost=lost[0], names=names, near=near, place=where,
        )  # fmt: skip
    what = "no known layout fits the columns {names}" + (" with {key}={asked}" if columns else "")
    fault = _Unusable(what, "{place}", NAME_COLUMNS, key=COLUMNS, names=names, asked=dict(columns), place=where)
    return read, None, fault


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
