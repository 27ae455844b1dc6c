"""Answers that repeat their prompt, as files of plain text have them: the repetition is no answer. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ANSWERS = ("completion", "chosen", "rejected", "first", "second")
_ROWS = 3
"""Rows that must agree where the prompts are short: an answer may begin with its question by chance."""
_LONG = 16
"""Characters of a prompt that no answer repeats by chance."""


def repeating(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> tuple[str, ...]:
    """The fields whose texts begin with their row's prompt, in nine of ten rows and of all sides of a pair."""
    fields = [name for name in ANSWERS if name in mapping]
    if "prompt" not in mapping or not fields:
        return ()
    seen = repeated = length = 0
    for row in rows:
        prompt = row.get(mapping["prompt"])
        texts = [row.get(mapping[name]) for name in fields]
        if isinstance(prompt, str) and prompt.strip() and all(isinstance(text, str) and text for text in texts):
            seen += 1
            if all(rest_of(text, prompt) is not None for text in texts):
                repeated += 1
                length = max(length, len(prompt.strip()))
    agreed = seen > 0 and 10 * repeated >= 9 * seen
    return tuple(fields) if agreed and (repeated >= _ROWS or length >= _LONG) else ()


def rest_of(text: Any, prompt: str) -> str | None:
    """What follows the prompt in a text; None where it does not begin with it."""
    if text.startswith(prompt):
        rest: str = text[len(prompt) :]
        return rest[1:] if rest.startswith(" ") and not rest.startswith("  ") else rest
    bare = prompt.strip()
    said = text.lstrip()
    return said[len(bare) :].lstrip() if said.startswith(bare) else None


def without_prompt(values: Mapping[str, Any], fields: Sequence[str]) -> Mapping[str, Any]:
    """The values, the fields without the prompt that they begin with."""
    prompt = values.get("prompt")
    if not fields or not isinstance(prompt, str) or not prompt.strip():
        return values
    rests = {name: rest_of(values[name], prompt) for name in fields if isinstance(values[name], str)}
    if None in rests.values():
        return values
    return {**values, **rests}
