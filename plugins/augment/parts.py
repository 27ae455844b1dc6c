"""The text of a record that an augmentation edits, and the record with another text in its place. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.api import Record

PARTS = ("prompt", "completion", "text")


def part_of(record: Record, part: str) -> str | None:
    """The user's last message (`prompt`), the `completion`, or the raw `text`; None where the record has none, and for
    a completion whose marked spans or steps would not fit another text."""
    if part == "prompt":
        place = _last_said(record)
        return None if place is None else record.prompt[place].content
    if part == "completion":
        return None if record.spans or record.steps else record.completion
    return record.text


def with_part(record: Record, part: str, text: str, meta: dict[str, Any]) -> Record:
    """The record with `text` for the part, which it must have, and `meta` added to its own."""
    meta = {**record.meta, **meta}
    if part == "completion":
        return replace(record, completion=text, meta=meta)
    if part == "text":
        return replace(record, text=text, meta=meta)
    place = _last_said(record)
    assert place is not None
    prompt = (*record.prompt[:place], record.prompt[place]._replace(content=text), *record.prompt[place + 1 :])
    return replace(record, prompt=prompt, meta=meta)


def _last_said(record: Record) -> int | None:
    """Place of the user's last message."""
    return max((place for place, message in enumerate(record.prompt) if message.role == "user"), default=None)
