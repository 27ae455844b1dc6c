"""Keys that a turn of a dialogue may have beside its role and content, and what they say. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from core.data.row_values import RowError, is_filled, kind_of, to_label

SPEAKERS = ("role", "from", "speaker")
CONTENTS = ("content", "value", "text")
WEIGHTS = ("loss_weight", "weight")
"""Keys whose number weighs the tokens of a turn."""
SWITCHES = ("train", "trainable", "trained", "training", "train_on", "learn", "loss", "loss_mask", "compute_loss",
            "use_loss", "include_in_loss")  # fmt: skip
"""Keys that say whether a turn is trained; a number between is its weight."""
MASKS = ("mask", "masked", "is_masked", "ignore", "skip_training", "no_train", "no_loss")
"""Keys that say that it is not."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "analysis")
"""Keys of what an assistant thinks before it speaks."""
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "pictures", "files")
CALLS = ("tool_calls", "function_call")

READ = frozenset((*SPEAKERS, *CONTENTS, *WEIGHTS, *SWITCHES, *MASKS, *THOUGHTS, *MEDIA, *CALLS, "annotations"))
PART_READ = frozenset(("type", "value", "text", *THOUGHTS, "tool_call", "tool_calls", "function_call", "input_text",
                       "output_text"))  # fmt: skip


def turn_weight(turn: Mapping[str, Any], field: str) -> float | None:
    """Weight of a turn's tokens: a number, or 1 and 0 for the switches; None where no key says anything.

    field: canonical field that the turn is in, as errors name it.
    Raises: RowError for a value that cannot be read, and for keys that contradict each other.
    """
    found: dict[str, float] = {}
    for key in turn.keys() & _WEIGHING:
        value = turn[key]
        if not is_filled(value):
            continue
        if key in WEIGHTS:
            found[key] = _number(value, key, field)
        elif key in SWITCHES and isinstance(value, float) and 0 < value < 1:
            found[key] = value
        else:
            said = _switch(value, key, field)
            if key in SWITCHES:
                found[key] = float(said)
            elif said:
                found[key] = 0.0
    if not found:
        return None
    if len(set(found.values())) > 1:
        keys = " and ".join(f"{key} {turn[key]!a}" for key in sorted(found))
        raise RowError(f"{keys} of a turn in {field} contradict each other", field)
    return next(iter(found.values()))


_WEIGHING = frozenset((*WEIGHTS, *SWITCHES, *MASKS))


def _number(value: object, key: str, field: str) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise RowError(f"wrong type: {key} of a turn in {field} is {kind_of(value)}, not a finite number", field)


def _switch(value: object, key: str, field: str) -> bool:
    try:
        return to_label(value, key)
    except RowError:
        shown = f"{value[:40]!a}" if isinstance(value, str) else kind_of(value)
        raise RowError(f"{key} of a turn in {field} is {shown}, not true or false", field) from None


def turn_thoughts(turn: Mapping[str, Any], field: str) -> list[str]:
    """What the turn thinks, under whatever key, each text once. Raises: RowError where it is no text."""
    thoughts: list[str] = []
    for key in THOUGHTS:
        value = turn.get(key)
        if not is_filled(value):
            continue
        if not isinstance(value, str):
            raise RowError(f"wrong type: {key} of a turn in {field} is {kind_of(value)}, not text", field)
        if value not in thoughts:
            thoughts.append(value)
    return thoughts


def check_media(turn: Mapping[str, Any], field: str) -> None:
    """Raises: RowError for a turn with pictures, sound or video."""
    for key in MEDIA:
        if is_filled(turn.get(key)):
            raise RowError(f"a turn in {field} has '{key}': pictures, sound and video are not supported", field)


def unread_keys(turns: object) -> Iterable[str]:
    """Keys of turns, and of the typed parts of their content, that say something and that nobody reads; each as often
    as it comes."""
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, dict):
            continue
        if not turn.keys() <= READ:
            yield from (str(key) for key in turn.keys() - READ if is_filled(turn[key]))
        content = turn.get("content")
        if type(content) is list:
            for part in content:
                if isinstance(part, dict) and not part.keys() <= PART_READ:
                    yield from (f"content.{key}" for key in part.keys() - PART_READ if is_filled(part[key]))
