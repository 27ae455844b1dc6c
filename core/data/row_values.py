"""Single values of a row: texts, numbers, verdicts, JSON, written as files write them. Torch-free."""

from __future__ import annotations

import json
import math
from typing import Any


class RowError(ValueError):
    """The row does not fit its dialect. `field` is the canonical field at fault, if it is one."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason, field)
        self.reason, self.field = reason, field


def kind_of(value: object) -> str:
    """What a JSON value is called in reasons."""
    names = {"str": "text", "NoneType": "null", "dict": "an object", "list": "a list", "bool": "true or false"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def is_filled(value: object) -> bool:
    """Whether a cell says something."""
    return value is not None and value not in ("", [], {})


def to_text(value: object, field: str) -> str:
    """A text as it stands. Raises: RowError for anything else, naming the canonical `field`."""
    if isinstance(value, str):
        return value
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not text", field)


def to_number(value: object, field: str) -> float:
    """A finite number, also one written as text. Raises: RowError for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not a finite number", field)


_GOOD = (
    "true", "t", "yes", "y", "on", "1", "1.0", "+1", "+", "good", "chosen", "desirable", "desired", "positive", "pos",
    "correct", "right", "accepted", "accept", "approved", "like", "liked", "upvote", "upvoted", "up", "thumbs_up",
    "thumb_up", "thumbsup", "👍", "👍️", "pass", "passed", "ok", "preferred", "better", "win", "winner", "helpful",
    "✓", "✔", "✅",
)  # fmt: skip
_BAD = (
    "false", "f", "no", "n", "off", "0", "0.0", "-1", "-1.0", "-", "bad", "rejected", "undesirable", "undesired",
    "negative", "neg", "incorrect", "wrong", "reject", "disapproved", "dislike", "disliked", "downvote", "downvoted",
    "down", "thumbs_down", "thumb_down", "thumbsdown", "👎", "👎️", "fail", "failed", "not_ok", "dispreferred", "worse",
    "lose", "loser", "unhelpful", "not_helpful", "✗", "✘", "❌",
)  # fmt: skip
_VERDICTS = {**dict.fromkeys(_GOOD, True), **dict.fromkeys(_BAD, False)}
"""Words by which files call something good or bad."""


def to_label(value: object, field: str) -> bool:
    """Whether something is good: true or false, 1 and 0 or -1, or a word such as good, rejected, yes, thumbs_down.
    Raises: RowError for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (1, 0, -1):
        return value == 1
    if isinstance(value, str):
        word = value.strip().lower().replace(" ", "_")
        found = _VERDICTS.get(word, _VERDICTS.get(word.replace("-", "_")))
        if found is not None:
            return found
        raise RowError(f"{field} {value[:40]!a} is no verdict such as true, false, good or bad", field)
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not true or false", field)


def to_answer(value: object, field: str) -> str:
    """A text, number or truth value as text. Raises: RowError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not text or a number", field)


def from_json(value: object, field: str) -> Any:
    """The value that a JSON text holds. Raises: RowError for any other text."""
    try:
        return json.loads(to_text(value, field))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"{field} is no JSON text", field) from None


def parsed(value: object) -> object:
    """A value, parsed where it is JSON written as text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
