"""Placeholders that nobody filled in, and pictures that nobody gives. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from core.data.records import Record

_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_]\w*\s*\}\}")


_PICTURE = re.compile(r"<image>|<\|image(?:_pad)?\|>|<video>|<\|video_pad\|>")


def placeholder_warnings(records: Iterable[Record]) -> list[str]:
    """A warning where completions hold `{{name}}`: a model would learn to say it; and one where turns name a picture
    that nobody gives. The records stay as they are."""
    found: Counter[str] = Counter()
    pictures: Counter[str] = Counter()
    count = pictured = 0
    for record in records:
        texts = [text for text in (record.completion, record.chosen, record.rejected, record.text) if text is not None]
        names = {name for text in texts if "{{" in text for name in _PLACEHOLDER.findall(text)}
        found.update(names)
        count += bool(names)
        said = (*texts, *(message.content for message in record.prompt))
        marks = {mark for text in said if "<" in text for mark in _PICTURE.findall(text)}
        pictures.update(marks)
        pictured += bool(marks)
    lines = []
    if count:
        what = f"{count} records hold placeholders ({_first(found)}) that the model would learn to say"
        lines.append(f"{what}; fill them in the data")
    if pictured:
        what = f"{pictured} records name pictures ({_first(pictures)}) that the model does not see"
        lines.append(f"{what}; take these records out: pictures are not supported")
    return lines


def _first(found: Counter[str]) -> str:
    return ", ".join(name for name, _ in found.most_common(5))
