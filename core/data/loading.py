"""Files to records: read, find the dialect of each, put bad rows aside. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from core.data.row_values import RowError
from core.data.unread import Unread
from core.errors import DataError
from core.settings.data_schema import COLUMNS, DATA_PATH
from core.suggest import did_you_mean

SAMPLE_ROWS = 50
"""Rows that a dialect is found from."""

SAMPLE_MOST = 12_800
"""Rows that are looked at where the first ones show no dialect."""

_SHOWN_BAD = 10_000
"""Bad rows that are kept with their text."""

_MOST_BAD = 1_000_000
"""Bad rows beyond which nobody reads them: memory has an end."""

NAME_COLUMNS = (
    "say which column holds what, e.g. {key}={{prompt: …, completion: …}} (an empty name leaves a field out), or name "
    "the layout with {part}.dialect=…; docs/data.md lists fields and layouts"
)
"""How to mend, as a template of an error whose key is COLUMNS."""


@dataclass(frozen=True)
class Loaded:
    """Records of one or several files, in their order."""

    records: list[Record]
    quarantined: list[BadRow]
    dialects: dict[str, Dialect]
    """By file; files hold one dialect each."""
    heldout: list[Record] = field(default_factory=list)
    """Records of the rows that a file itself holds out, e.g. under `test` beside `train`."""
    unread: Unread = field(default_factory=Unread)
    """What nobody reads."""
    warnings: list[str] = field(default_factory=list)
    """What a user should know of the rows."""

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
    taken = _Taken(listed if into is None else into, columns or {})
    bad = taken.bad
    dialects: dict[str, Dialect] = {}
    faults: list[DataError] = []
    for name, where, rows in sources:
        try:
            dialects[name] = _load_file(rows, name, where, find, taken)
        except _Unusable as error:
            faults.append(error)
    if not taken.count and faults:
        raise faults[0].at(key) if faults[0].key == DATA_PATH else faults[0]
    total = taken.count + len(bad)
    if len(bad) > max_bad_frac * total:
        first = "; ".join(str(row) for row in bad[:3])
        what = f"{len(bad)} of {total} rows cannot be used ({len(bad) / total:.1%}, data.max_bad_frac={max_bad_frac})"
        mend = (
            "correct these rows, name the columns with {key}={{…}} (an empty name leaves a field out), or raise "
            "data.max_bad_frac"
        )
        raise DataError(what, "{first}", mend, key=COLUMNS, first=first)
    return Loaded(listed, bad, dialects, taken.heldout, taken.unread, taken.warnings())


@dataclass
class _Taken:
    """What was made of the rows so far."""

    records: list[Record] | RecordWriter
    columns: Mapping[str, str]
    """Canonical field to column, as the user names them."""
    heldout: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    unread: Unread = field(default_factory=Unread)
    repeating: int = 0
    """Rows whose answers are read without the prompt that they repeat."""
    doubtful: int = 0
    """Rows of files whose answers begin with the prompt, which may be part of them."""

    @property
    def count(self) -> int:
        return len(self.records) + len(self.heldout)

    def add(self, made: Sequence[Record], row: Row, dialect: Dialect) -> None:
        """Keep the records of a row."""
        into = self.heldout if row.heldout else self.records
        for record in made:
            into.append(record)
        self.unread.see(row.value, dialect)
        self.repeating += bool(dialect.repeats.fields)
        self.doubtful += dialect.repeats.doubtful

    def refuse(self, name: str, row: Row, why: str) -> None:
        """Put a row aside. Raises: DataError when there are too many of them to keep."""
        self.bad.append(BadRow(name, row.line, why, excerpt(row.value) if len(self.bad) < _SHOWN_BAD else ""))
        if len(self.bad) > _MOST_BAD:
            first = "; ".join(str(bad) for bad in self.bad[:3])
            raise DataError(
                f"more than {_MOST_BAD:,} rows cannot be used", "{first}", NAME_COLUMNS, key=COLUMNS, first=first
            )

    def warnings(self) -> list[str]:
        """What a user should know of the rows."""
        lines = self.unread.warnings(name for name, column in self.columns.items() if not column)
        if self.repeating:
            lines.append(f"the answers of {self.repeating:,} rows begin with their prompt, and are read without it")
        if self.doubtful:
            what = f"the answers begin with their prompt, in a file of {self.doubtful:,} rows, and are trained so"
            lines.append(f"{what}; take it out where it is no part of them")
        return lines


class _Unusable(DataError):
    """No row of the file can be used; its rows are among the bad ones."""


def _no_rows(where: str) -> _Unusable:
    mend = "point {key} at a file that is not empty"
    return _Unusable("the file holds no rows", "{place}", mend, key=DATA_PATH, place=where)


Find = Callable[[Sequence[Mapping[str, Any]]], Dialect | None]
"""Objects to the dialect that they have."""


def _load_file(rows: Iterator[Row], name: str, where: str, find: Find, taken: _Taken) -> Dialect:
    """Add the file's records and bad rows; returns its dialect. Rows are read one by one."""
    counts = taken.count, len(taken.bad)
    sampled, dialect, fault = _sample(rows, where, find, taken.columns)
    for row in chain(sampled, rows):
        value = row.value
        why = row.fault or ("" if type(value) is dict else "not an object") or (fault.what if fault else "")
        if dialect is not None and not why:
            try:
                made = dialect.records(value, {"file": name, "line": row.line, "source": where})
            except RowError as error:
                why = error.reason
            else:
                if made:
                    taken.add(made, row, dialect)
                    continue
                why = "the row holds nothing to learn from"
        taken.refuse(name, row, why)
    if dialect is None:
        raise fault or _no_rows(where)
    if taken.count == counts[0]:
        faults = taken.bad[counts[1] :]
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
        lost = [column for column in columns.values() if column and column not in known]
        if dialect is not None and not lost:
            return read, dialect, None
        if len(objects) < wanted or len(objects) >= SAMPLE_MOST:
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
    told: dict[str, Any] = {"key": COLUMNS, "names": names, "asked": dict(columns), "place": where}
    if len(objects) >= SAMPLE_MOST:
        raise DataError(f"{what}, in {len(objects):,} rows", "{place}", NAME_COLUMNS, **told)
    return read, None, _Unusable(what, "{place}", NAME_COLUMNS, **told)


def describe(loaded: Loaded) -> dict[str, Any]:
    """Dialect, mapping and what is not read, for the plan; by file where dialect or mapping differ."""
    found = {name: (dialect.name, dialect.mapping) for name, dialect in loaded.dialects.items()}
    rest = {**loaded.unread.to_json(), "files": loaded.files}
    first = next(iter(found.values()))
    if all(one == first for one in found.values()):
        return {"dialect": first[0], "mapping": first[1], **rest}
    names = dict.fromkeys(name for name, _ in found.values())
    return {"dialect": ", ".join(names), "mapping": {file: one for file, (_, one) in found.items()}, **rest}
