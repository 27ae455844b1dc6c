"""Dialects: which columns hold what, found from the rows, and rows to records. Torch-free.

A `DialectSpec` names the canonical fields that a row must bring and turns their values into a record's; `detect` binds
the first one of DIALECTS that fits to the columns of a file.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.errors import ConfigError
from core.records import Message, Record
from core.turns import RowError, from_transcript, is_transcript, kind_of, to_messages, to_text

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction"),
    "input": ("input", "context"),
    "completion": ("completion", "response", "output", "target"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "response_j"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "response_k"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "answer": ("answer",),
    "label": ("label", "kto_tag"),
    "score": ("score", "reward"),
    "margin": ("margin",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
}
"""Canonical fields, and the columns that they are looked for in, best first."""


# 1. Values of a row to the fields of a record.


def to_prompt(values: Mapping[str, Any], field: str = "prompt") -> tuple[Message, ...]:
    """Messages of the field that holds the prompt (text, transcript or turns), with the row's `input` joined to it
    and its `system` before it. Raises: RowError for an empty prompt."""
    value = values[field]
    prompt: tuple[Message, ...]
    if not isinstance(value, str):
        prompt = to_messages(value, field)
    elif is_transcript(value):
        prompt = from_transcript(value, field)
        if prompt[-1].role == "assistant" and not prompt[-1].content:
            prompt = prompt[:-1]
    else:
        more = values.get("input")
        more = to_text(more, "input") if more is not None else ""
        prompt = (Message("user", f"{value}\n\n{more}" if value.strip() and more.strip() else value + more),)
    return _checked_prompt(prompt, values)


def _checked_prompt(prompt: tuple[Message, ...], values: Mapping[str, Any]) -> tuple[Message, ...]:
    if not any(message.role in {"user", "tool"} and message.content.strip() for message in prompt):
        raise RowError("empty prompt")
    system = values.get("system")
    if system is not None and to_text(system, "system").strip() and prompt[0].role != "system":
        prompt = (Message("system", system), *prompt)
    return prompt


def to_completion(value: object, field: str) -> tuple[tuple[Message, ...], str]:
    """Text of the final assistant turn, and the messages before it in the same field.
    Raises: RowError when it is empty or the last turn is not the assistant's."""
    before: tuple[Message, ...] = ()
    if isinstance(value, str):
        text = value
    else:
        *rest, last = to_messages(value, field) or [Message("assistant", "")]
        if last.role != "assistant":
            raise RowError(f"the last turn of {field} is the {last.role}'s, not the assistant's", field)
        before, text = tuple(rest), last.content
    if not text.strip():
        raise RowError("empty completion" if field == "completion" else f"empty completion: {field}", field)
    return before, text


def _completed(values: Mapping[str, Any]) -> dict[str, Any]:
    before, completion = to_completion(values["completion"], "completion")
    return {"prompt": _joined(to_prompt(values), before, values, "completion"), "completion": completion}


def _joined(
    prompt: tuple[Message, ...], before: tuple[Message, ...], values: Mapping[str, Any], field: str
) -> tuple[Message, ...]:
    """The prompt, where `field` brings messages before its last turn: they repeat the prompt, or go on from it."""
    if not before:
        return prompt
    said = [message for message in prompt if message.role != "system"]
    again = [message for message in before if message.role != "system"]
    if said in (again[: len(said)], again[-len(said) :]):
        system = prompt[:1] if prompt[0].role == "system" and before[0].role != "system" else ()
        return _checked_prompt(system + before, values)
    if before[0].role == "assistant":
        return prompt + before
    raise RowError(f"the messages of {field} do not hold the prompt", field)


def _conversation(values: Mapping[str, Any]) -> dict[str, Any]:
    messages = to_messages(values["messages"], "messages")
    completion = None
    if messages and messages[-1].role == "assistant":
        completion = messages[-1].content
        messages = messages[:-1]
    prompt = _checked_prompt(messages, values)
    if completion is not None and not completion.strip():
        raise RowError("empty completion", "messages")
    return {"prompt": prompt, "completion": completion}


def _pair(values: Mapping[str, Any]) -> dict[str, Any]:
    """Explicit prompt, which `chosen` and `rejected` may repeat before their last turn."""
    before, chosen = to_completion(values["chosen"], "chosen")
    other, rejected = to_completion(values["rejected"], "rejected")
    if before != other:
        raise RowError("chosen and rejected part before their last turn")
    return {"prompt": _joined(to_prompt(values), before, values, "chosen"), **_compared(chosen, rejected)}


def _pair_of(turns: Callable[[object, str], tuple[Message, ...]]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Implicit prompt: two conversations that differ in their last turn only."""

    def parse(values: Mapping[str, Any]) -> dict[str, Any]:
        texts, prompts = [], []
        for name in ("chosen", "rejected"):
            messages = turns(values[name], name)
            texts.append(to_completion([message.as_dict() for message in messages[-1:]], name)[1])
            prompts.append(messages[:-1])
        if prompts[0] != prompts[1]:
            raise RowError("chosen and rejected part before their last turn")
        return {"prompt": _checked_prompt(prompts[0], values), **_compared(*texts)}

    return parse


def _compared(chosen: str, rejected: str) -> dict[str, Any]:
    if chosen.strip() == rejected.strip():
        raise RowError("chosen equal to rejected")
    return {"chosen": chosen, "rejected": rejected}


def _prompt_only(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": to_prompt(values)}


def _raw_text(values: Mapping[str, Any]) -> dict[str, Any]:
    text = to_text(values["text"], "text")
    if not text.strip():
        raise RowError("empty text", "text")
    return {"text": text}


# 2. Optional fields.


def to_number(value: object, field: str) -> float:
    """A finite number, also one written as text. Raises: RowError for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not a finite number", field)


def to_label(value: object, field: str) -> bool:
    """True or False, also as 1 and 0 or as text. Raises: RowError for anything else."""
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not true or false", field)


def to_answer(value: object, field: str) -> str:
    """A text, number or truth value as text. Raises: RowError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not text or a number", field)


OPTIONAL: dict[str, Callable[[object, str], Any]] = {
    "answer": to_answer, "label": to_label, "score": to_number, "margin": to_number, "chosen_score": to_number,
    "rejected_score": to_number, "system": to_text, "input": to_text,
}  # fmt: skip
"""Fields that any dialect takes along where a column of the right type is there."""

JOINED = ("system", "input")
"""Those of them that become part of the prompt."""


# 3. The dialects.


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _has_turns(key: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _is_turns(value: object) -> bool:
    return _has_turns("role")(value) or _has_turns("from")(value)


def _is_said(value: object) -> bool:
    return _is_text(value) or _is_turns([value] if isinstance(value, dict) else value)


@dataclass(frozen=True)
class DialectSpec:
    """A way to lay out rows."""

    name: str
    required: dict[str, Callable[[object], bool]]
    """Canonical field to the test that its values pass."""
    parse: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Values by canonical field to fields of a Record; raises RowError."""
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns to look in, where they differ from ALIASES."""
    named: bool = False
    """Known by the name of its prompt column alone; steps back when the user names another."""


DIALECTS: list[DialectSpec] = [
    DialectSpec(
        "preference",
        {"prompt": _is_said, "chosen": _is_said, "rejected": _is_said},
        _pair,
        {"prompt": (*ALIASES["prompt"], *ALIASES["messages"])},
    ),
    DialectSpec("preference_messages", {"chosen": _is_turns, "rejected": _is_turns}, _pair_of(to_messages)),
    DialectSpec(
        "preference_transcript", {"chosen": is_transcript, "rejected": is_transcript}, _pair_of(from_transcript)
    ),
    DialectSpec("messages", {"messages": _has_turns("role")}, _conversation),
    DialectSpec("sharegpt", {"messages": _has_turns("from")}, _conversation),
    DialectSpec(
        "alpaca",
        {"prompt": _is_text, "completion": _is_text},
        _completed,
        {"prompt": ("instruction",), "completion": ("output", "response", "completion")},
        named=True,
    ),
    DialectSpec(
        "prompt_completion",
        {"prompt": _is_said, "completion": _is_said},
        _completed,
        {"prompt": ("prompt", "question", "query", "input")},
    ),
    DialectSpec(
        "question_answer",
        {"prompt": _is_text, "completion": _is_text},
        _completed,
        {"prompt": ("question",), "completion": ("answer",)},
        named=True,
    ),
    DialectSpec("prompts", {"prompt": _is_said}, _prompt_only),
    DialectSpec("text", {"text": _is_text}, _raw_text),
]
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

    @cached_property
    def _used(self) -> frozenset[str]:
        return frozenset(self.mapping.values())

    @cached_property
    def _options(self) -> list[str]:
        return [name for name in self.mapping if name in OPTIONAL and name not in JOINED]

    def record(self, row: Mapping[str, Any], meta: dict[str, Any]) -> Record:
        """The record of a row; columns that no field stands for go to `meta["extra"]`.

        Raises: RowError when the row does not fit.
        """
        values = {name: row.get(column) for name, column in self.mapping.items()}
        if None in values.values():
            missing = [self.mapping[name] for name in self.spec.required if values[name] is None]
            if missing:
                raise RowError(f"missing columns: {', '.join(missing)}")
        try:
            fields = self.spec.parse(values)
            for name in self._options:
                value = values[name]
                if value is not None and value != "":
                    fields[name] = OPTIONAL[name](value, name)
        except RowError as error:
            column = self.mapping.get(error.field, error.field)
            raise error if column == error.field else RowError(f"{error.reason} (column '{column}')") from None
        if self._options:
            better, worse = fields.pop("chosen_score", None), fields.pop("rejected_score", None)
            if better is not None and worse is not None:
                fields.setdefault("margin", better - worse)
        if not row.keys() <= self._used:
            meta["extra"] = {column: value for column, value in row.items() if column not in self._used}
        record = Record(meta=meta, **fields)
        try:
            _ = record.key
        except UnicodeEncodeError:
            raise RowError("not UTF-8: a lone surrogate") from None
        except RecursionError:
            raise RowError("nested too deeply") from None
        return record


def detect(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> Dialect | None:
    """The first dialect that at least half of the rows fit, else the one that most fit; None when none fits any.

    columns: canonical field to column; a dialect must then hold these fields.
    Raises: ConfigError for a field in `columns` that does not exist.
    """
    columns = dict(columns or {})
    for name in columns:
        if name not in ALIASES:
            near = difflib.get_close_matches(name, ALIASES, 1)
            what = f"'data.columns' names '{name}', which is no field"
            raise ConfigError(what, mend=f"use '{near[0]}'" if near else f"use one of {', '.join(ALIASES)}")
    best: tuple[int, DialectSpec, dict[str, str]] | None = None
    for spec in DIALECTS:
        if not columns.keys() <= spec.required.keys() | OPTIONAL.keys():
            continue
        if spec.named and columns.get("prompt", spec.aliases["prompt"][0]) not in spec.aliases["prompt"]:
            continue
        mapping = {name: _column(rows, spec, name, columns) for name in spec.required}
        fits = sum(all(test(row.get(mapping[name])) for name, test in spec.required.items()) for row in rows)
        if fits and (best is None or fits > best[0]):
            best = (fits, spec, mapping)
        if fits and 2 * fits >= len(rows):
            best = (fits, spec, mapping)
            break
    if best is None:
        return None
    _, spec, mapping = best
    for name in OPTIONAL:
        if name in columns:
            mapping[name] = columns[name]
        elif name != "input" or mapping.get("prompt") == "instruction":
            mapping |= _optional(rows, name)
    return Dialect(spec.name, mapping, _columns(rows), spec)


def _column(rows: Sequence[Mapping[str, Any]], spec: DialectSpec, name: str, columns: Mapping[str, str]) -> str:
    """The alias of a required field that most rows fit, the better name first."""
    if name in columns:
        return columns[name]
    aliases = spec.aliases.get(name, ALIASES[name])
    test = spec.required[name]
    counts = [sum(test(row.get(alias)) for row in rows) for alias in aliases]
    full = [count for count in counts if 2 * count >= len(rows)]
    return aliases[counts.index(full[0] if full else max(counts))]


def _optional(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """The column of an optional field, where at least half of its values have the right type."""
    for alias in ALIASES[name]:
        values = [row[alias] for row in rows if row.get(alias) not in (None, "")]
        good = 0
        for value in values:
            try:
                OPTIONAL[name](value, name)
            except RowError:
                continue
            good += 1
        if good and 2 * good >= len(values):
            return {name: alias}
    return {}


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(column) for row in rows for column in row))
