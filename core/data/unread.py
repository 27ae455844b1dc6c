"""What the rows hold and nobody reads: columns and keys of messages, how often they say something, and those whose
names change the meaning of what is trained. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.data.dialects import Dialect
from core.data.dialects.fields import ALIASES, normal
from core.data.info import PartInfo
from core.data.row_values import is_filled
from core.data.turn_keys import MASKS, MEDIA, SWITCHES, WEIGHTS, unread_keys

OF_TURNS = frozenset({"prompt", "messages", "completion", "chosen", "rejected", "first", "second", "history"})
"""Fields that may hold turns."""

_MOST = 500
"""Names that are counted; files may give every row columns of its own."""

_MEANINGS: dict[str, tuple[str, ...]] = {
    "says whether something is trained": (
        *SWITCHES, *MASKS, *WEIGHTS, "weights", "loss_masks", "train_mask", "train_detail", "labels_mask",
        "is_training", *ALIASES["trained"], "trainable_turns", "train_on_turn",
    ),
    "says which part of the data a row belongs to": ("split", "partition", "is_test", "is_train", "is_heldout"),
    "holds turns before the question": ALIASES["history"],
    "holds what the question is about": (*ALIASES["context"], "input"),
    "is a verdict": (
        *ALIASES["label"], "labels", "verdict", "rating", "feedback", "thumbs_down", "is_bad", "is_correct", "correct",
        "preferred", "preference", "winner", "chosen", "rejected", "quality", "disliked", "is_rejected",
    ),
    "holds pictures, sound or video": (*ALIASES["image"], *ALIASES["video"], *ALIASES["audio"], *MEDIA, "attachments"),
    "holds what the assistant thinks": ALIASES["reasoning"],
    "holds tools": ("tools", "functions", "available_tools"),
    "holds a system message": ALIASES["system"],
}  # fmt: skip
_MEANING = {name: meaning for meaning, names in reversed(_MEANINGS.items()) for name in names}
"""Name of a column or a key to what it says of the rows."""


@dataclass
class Unread:
    """Counts over the rows that became records."""

    rows: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    """Column to the rows in which it says something."""
    keys: Counter[str] = field(default_factory=Counter)
    """Key of a message to the messages in which it says something."""

    def see(self, row: Mapping[str, Any], dialect: Dialect) -> None:
        """Count a row that a dialect has read."""
        self.rows += 1
        if not row.keys() <= dialect.used:
            _count(self.columns, (str(name) for name in row.keys() - dialect.used if is_filled(row[name])))
        for name, column in dialect.mapping.items():
            if name in OF_TURNS and type(row.get(column)) in (list, dict):
                _count(self.keys, unread_keys(row[column]))

    def to_json(self) -> dict[str, Any]:
        """Fields of core.data.info.PartInfo."""
        return {"rows": self.rows, "extra_columns": _ordered(self.columns), "extra_keys": _ordered(self.keys)}

    def warnings(self, named: Iterable[str] = ()) -> list[str]:
        """A line for each name that changes the meaning. named: fields that the user has left out by name."""
        excused = {normal(alias) for name in named for alias in ALIASES.get(name, (name,))}
        found = [(f"the column '{name}'", name, f"{n:,} of {self.rows:,} rows") for name, n in _most(self.columns)]
        found += [(f"the key '{name}' of messages", name, f"{n:,} messages") for name, n in _most(self.keys)]
        lines = []
        for what, name, often in found:
            last = normal(name.rpartition(".")[2])
            if last in _MEANING and last not in excused:
                lines.append(f"{what} {_MEANING[last]}, by its name, and is not read ({often}); {_MEND}")
        return lines


_SHOWN = 8
_MEND = "bring the rows into a layout of docs/data.md, or take it out"


def _count(counter: Counter[str], names: Iterable[str]) -> None:
    for name in names:
        if name in counter or len(counter) < _MOST:
            counter[name] += 1


def _most(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _ordered(counter: Counter[str]) -> dict[str, int]:
    return dict(_most(counter))


def column_pairs(part: PartInfo) -> list[tuple[str, str]]:
    """Lines on the columns of a part, each under its label: which column is read as what, where the files agree, and
    what is not read, with how often it says something."""
    read = [name if name == column else f"{name} ← {column}" for name, column in (part.mapping or {}).items()]
    agree = all(isinstance(column, str) for column in (part.mapping or {}).values())
    rest = [f"{name} ({count:,} of {part.rows or 0:,} rows)" for name, count in (part.extra_columns or {}).items()]
    rest += [f"{name} ({count:,} messages)" for name, count in (part.extra_keys or {}).items()]
    more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
    pairs = [("columns", ", ".join(read) if agree else ""), ("not read", ", ".join(rest[:_SHOWN]) + more)]
    return [pair for pair in pairs if pair[1]]
