"""Answers that repeat their prompt, as files of plain text have them: the repetition is no answer. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANSWERS = ("completion", "chosen", "rejected", "first", "second")
_ROWS = 3
"""Rows that must agree: an answer may begin with its question by chance."""
_WORDS = 5
"""Words of a prompt that is more than the name of something, with which its description would begin too."""


@dataclass(frozen=True)
class Repeats:
    """What the rows of a file show of answers that begin with their prompt."""

    fields: tuple[str, ...] = ()
    """Fields that are read without the prompt."""
    doubtful: bool = False
    """Whether answers begin with prompts that may be part of them; these stay."""


NO_REPEATS = Repeats()


def repeating(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> Repeats:
    """The fields whose texts begin with their row's prompt, in nine of ten rows and on all sides of a pair."""
    fields = tuple(name for name in ANSWERS if name in mapping)
    if "prompt" not in mapping or not fields:
        return NO_REPEATS
    seen = repeated = spoken = 0
    for row in rows:
        prompt = row.get(mapping["prompt"])
        texts = [row.get(mapping[name]) for name in fields]
        if isinstance(prompt, str) and prompt.strip() and all(isinstance(text, str) and text for text in texts):
            seen += 1
            if all(rest_of(text, prompt) is not None for text in texts):
                repeated += 1
                spoken += not prompt[-1].isalnum() or "\n" in prompt or len(prompt.split()) >= _WORDS
    if not seen or 10 * repeated < 9 * seen or (repeated < _ROWS and not (spoken and len(fields) > 1)):
        return NO_REPEATS
    return Repeats(fields) if 2 * spoken >= repeated else Repeats(doubtful=True)


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
