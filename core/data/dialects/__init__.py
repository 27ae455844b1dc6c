"""Dialects: which columns hold what, found from the rows, and rows to records. Torch-free.

A `DialectSpec` names the canonical fields that a row must bring and turns their values into those of a record; `detect`
binds the first spec that fits to the columns of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.data.dialects import chat, feedback, plain, preference, supervised
from core.data.dialects.fields import ALIASES, JOINED, OPTIONAL, UNPLACED, has_place, normal
from core.data.dialects.repeats import NO_REPEATS, Repeats, repeating, without_prompt
from core.data.records import Record
from core.data.row_values import RowError, is_filled, kind_of
from core.errors import ConfigError, PluginError
from core.platform.specs import DialectSpec
from core.settings.data_schema import COLUMNS, DIALECT
from core.suggest import did_you_mean

BUILT_IN: tuple[DialectSpec, ...] = (
    *preference.DIALECTS, *feedback.DIALECTS, *chat.DIALECTS, *supervised.DIALECTS, *plain.DIALECTS,
)  # fmt: skip
"""Tried in this order: what says more comes first."""


@dataclass(frozen=True)
class Dialect:
    """A dialect bound to the columns of a file."""

    name: str
    mapping: dict[str, str]
    """Canonical field to column."""
    columns: tuple[str, ...]
    """Columns of the rows that it was found from, in their order."""
    spec: DialectSpec
    repeats: Repeats = NO_REPEATS
    """Answers that begin with their prompt."""

    @cached_property
    def used(self) -> frozenset[str]:
        """Columns that the dialect reads."""
        return frozenset(self.mapping.values())

    @cached_property
    def _moved(self) -> frozenset[str]:
        """Columns that have a place in the record. Others stay in `extra` though they are read."""
        return frozenset(column for name, column in self.mapping.items() if name not in UNPLACED)

    @cached_property
    def _options(self) -> list[str]:
        own = self.spec.required.keys() | self.spec.optional.keys()
        return [name for name in self.mapping if name in OPTIONAL and name not in JOINED and name not in own]

    def records(self, row: Mapping[str, Any], meta: dict[str, Any]) -> list[Record]:
        """The records of a row, mostly one; columns that no field stands for go to `meta["extra"]`.

        Raises: RowError when the row does not fit.
        """
        values = {name: row.get(column) for name, column in self.mapping.items()}
        if None in values.values():
            missing = [self.mapping[name] for name in self.spec.required if values[name] is None]
            if missing:
                raise RowError(f"missing columns: {', '.join(missing)}")
        try:
            self._check_optional(values)
            made = self.spec.parse(without_prompt(values, self.repeats.fields))
            options = self._optional_values(values)
        except RowError as error:
            column = self.mapping.get(error.field, error.field)
            raise error if column == error.field else RowError(f"{error.reason} (column '{column}')") from None
        except RecursionError:
            raise RowError("nested too deeply") from None
        except OverflowError:
            raise RowError("a number that is too large") from None
        except Exception as error:  # a row must not end the run, whatever is in it
            raise RowError(self._fault(values) or f"'{self.name}' fails: {type(error).__name__}: {error}") from None
        meta |= options.pop("meta", {})
        if not row.keys() <= self._moved:
            meta["extra"] = {column: value for column, value in row.items() if column not in self._moved}
        untrained = options.pop("trained", True) is False
        if not isinstance(made, list):
            return [_record(options | made, meta, untrained)]
        return [_record(options | fields, {**meta, "part": part}, untrained) for part, fields in enumerate(made)]

    def _check_optional(self, values: Mapping[str, Any]) -> None:
        """Raises: RowError for a value in a column of the dialect's own that it cannot take."""
        for name, test in self.spec.optional.items():
            value = values.get(name)
            if is_filled(value) and not test(value):
                raise RowError(f"wrong type: {name} is {kind_of(value)} of another form than is read", name)

    def _fault(self, values: Mapping[str, Any]) -> str:
        """Which value is not of the kind that the dialect asks for; empty where all are."""
        for name, test in (*self.spec.required.items(), *self.spec.optional.items()):
            value = values.get(name)
            if (name in self.spec.required or value is not None) and not test(value):
                return f"wrong type: {self.mapping[name]} is {kind_of(value)} of another form than in other rows"
        return ""

    def _optional_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not self._options:
            return {}
        found = {name: OPTIONAL[name](values[name], name) for name in self._options if is_filled(values[name])}
        if meta := {UNPLACED[name]: found.pop(name) for name in found.keys() & UNPLACED.keys()}:
            found["meta"] = meta
        better, worse = found.pop("chosen_score", None), found.pop("rejected_score", None)
        if better is not None and worse is not None:
            found.setdefault("margin", better - worse)
        return found


def _record(fields: dict[str, Any], meta: dict[str, Any], untrained: bool = False) -> Record:
    """A record; of an `untrained` one no turn has a weight."""
    if untrained:
        turns = (turn._replace(weight=0.0 if turn.role == "assistant" else turn.weight) for turn in fields["prompt"])
        fields |= {"prompt": tuple(turns), "weight": 0.0}
    more = fields.pop("meta", None)
    record = Record(meta={**meta, **more} if more else meta, **fields)
    try:
        _ = record.key
    except UnicodeEncodeError:
        raise RowError("not UTF-8: a lone surrogate") from None
    except RecursionError:
        raise RowError("nested too deeply") from None
    return record


def detect(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    specs: Sequence[DialectSpec] = BUILT_IN,
    wanted: str | None = None,
) -> Dialect | None:
    """The first dialect that at least half of the rows fit, else the one that most fit; None when none fits any.

    columns: canonical field to column; a dialect must then hold these fields.
    wanted: name of the only dialect to try.
    Raises: ConfigError for a field in `columns` or a dialect that does not exist.
    """
    columns = dict(columns or {})
    specs = _asked_for(specs, columns, wanted)
    table = _Columns(rows, columns)
    best: tuple[int, DialectSpec, dict[str, str]] | None = None
    for spec in specs:
        mapping = {name: table.required(spec, name) for name in spec.required}
        fits = sum(all(_fits(spec, name, row.get(mapping[name])) for name in spec.required) for row in rows)
        if fits and (best is None or fits > best[0]):
            best = (fits, spec, mapping)
        if fits and 2 * fits >= len(rows):
            best = (fits, spec, mapping)
            break
    if best is None:
        return None
    _, spec, mapping = best
    for name in (*spec.optional, *(name for name in OPTIONAL if name not in spec.required)):
        if name in columns:
            mapping[name] = columns[name]
        elif name in spec.optional or has_place(spec, name):
            mapping |= table.optional(spec, name, frozenset(mapping.values()), mapping.get("prompt", ""))
    mapping = {name: column for name, column in mapping.items() if column}
    return Dialect(spec.name, mapping, tuple(table.names), spec, repeating(rows, mapping))


def _asked_for(specs: Sequence[DialectSpec], columns: Mapping[str, str], wanted: str | None) -> list[DialectSpec]:
    """The specs that hold the fields of `columns`, or the one that is wanted. Raises: ConfigError as detect does."""
    fields = dict.fromkeys([*ALIASES, *(name for spec in specs for name in (*spec.required, *spec.optional))])
    for name in columns:
        if name not in fields:
            raise _unknown("'{key}' names '{name}', which is no field", name, fields, COLUMNS)
    if wanted is not None:
        found = [spec for spec in specs if spec.name == wanted]
        if not found:
            raise _unknown("there is no dialect '{name}'", wanted, [spec.name for spec in specs], DIALECT, "{key}")
        return found
    return [
        spec
        for spec in specs
        if columns.keys() <= spec.required.keys() | spec.optional.keys() | OPTIONAL.keys()
        and not (spec.named and columns.get("prompt", spec.aliases["prompt"][0]) not in spec.aliases["prompt"])
    ]


def _unknown(what: str, name: str, known: Iterable[str], key: str, where: str = "") -> ConfigError:
    names, near = list(known), did_you_mean(name, known)
    mend = "choose one of: {known}"
    return ConfigError(what + "{near}", where, mend, key=key, name=name, near=near, known=", ".join(names))


class _Columns:
    """The columns of some rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], given: Mapping[str, str]) -> None:
        self.rows, self.given = rows, given
        self.names = dict.fromkeys(str(column) for row in rows for column in row)
        self.by_normal: dict[str, str] = {}
        for name in self.names:
            self.by_normal.setdefault(normal(name), name)

    def _aliases(self, spec: DialectSpec, name: str) -> list[str]:
        aliases = spec.aliases.get(name) or ALIASES.get(name, (name,))
        return [alias if alias in self.names else self.by_normal.get(normal(alias), alias) for alias in aliases]

    def required(self, spec: DialectSpec, name: str) -> str:
        """The alias of a required field that most rows fit, the better name first."""
        if name in self.given:
            return self.given[name]
        aliases = self._aliases(spec, name)
        counts = [sum(_fits(spec, name, row.get(alias)) for row in self.rows) for alias in aliases]
        full = [count for count in counts if 2 * count >= len(self.rows)]
        return aliases[counts.index(full[0] if full else max(counts))]

    def optional(self, spec: DialectSpec, name: str, taken: frozenset[str], prompt: str) -> dict[str, str]:
        """The column of an optional field, none of those `taken`: the first of which at least half of the values can be
        read. Else the first that says anything, whose rows are then bad ones, or that is there at all: later rows may
        fill it.

        prompt: column of the prompt; `context` is the input of an `instruction`."""
        there: list[str] = []
        filled: list[str] = []
        for alias in self._aliases(spec, name):
            if alias in taken or alias not in self.names:
                continue
            as_input = name == "input" and normal(alias) == "context"
            if as_input and normal(prompt) != "instruction":
                continue
            values = [row[alias] for row in self.rows if is_filled(row.get(alias))]
            good = sum(_takes(spec, name, value) for value in values)
            if good and 2 * good >= len(values):
                return {name: alias}
            if not as_input and name not in UNPLACED:
                (filled if values else there).append(alias)
        found = [*filled, *there]
        return {name: found[0]} if found else {}


def _fits(spec: DialectSpec, name: str, value: object) -> bool:
    """Whether a value passes the test of a required field. Raises PluginError where the test fails: every run asks
    every dialect, so a plugin's must be named."""
    try:
        return bool(spec.required[name](value))
    except Exception as error:
        raise PluginError(
            f"the dialect '{spec.name}' fails where it tests '{name}': {type(error).__name__}: {error}",
            mend="repair the plugin that brings it, or leave it out; a test must take any value, None too",
        ) from error


def _takes(spec: DialectSpec, name: str, value: object) -> bool:
    if name in spec.optional:
        return bool(spec.optional[name](value))
    try:
        OPTIONAL[name](value, name)
    except (RowError, RecursionError):
        return False
    return True
