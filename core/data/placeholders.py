"""Placeholders that nobody filled in. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from core.data.records import Record

_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_]\w*\s*\}\}")


def placeholder_warnings(records: Iterable[Record]) -> list[str]:
    """A warning where completions hold `{{name}}`: a model would learn to say it. The records stay as they are."""
    found: Counter[str] = Counter()
    count = 0
    for record in records:
        texts = (record.completion, record.chosen, record.rejected, record.text)
        names = {name for text in texts if text is not None and "{{" in text for name in _PLACEHOLDER.findall(text)}
        found.update(names)
        count += bool(names)
    if not count:
        return []
    first = ", ".join(name for name, _ in found.most_common(5))
    return [f"{count} records hold placeholders ({first}) that the model would learn to say; fill them in the data"]
