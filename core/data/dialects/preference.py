"""Dialects of comparisons. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.data.dialects.fields import ALIASES, is_number, is_said, is_text, is_turns
from core.data.dialects.parts import Values, pair, ranked_pairs, to_prompt, whole_pair
from core.data.row_values import RowError, to_number, to_text
from core.data.turns import from_transcript, is_transcript, to_messages
from core.platform.specs import DialectSpec

PROMPTS = (*ALIASES["prompt"], *ALIASES["messages"], "input")

_ONE = ("1", "a", "model_a", "response_1", "response_a", "output_1", "first")
_TWO = ("2", "b", "model_b", "response_2", "response_b", "output_2", "second")
_TIES = ("tie", "tie (bothbad)", "both", "neither", "equal", "same", "0")


def _labelled(values: Values) -> dict[str, Any]:
    """The verdict names one of two completions: 1 or 2, a or b, model_a or model_b. Of a tie, the prompt alone."""
    return _verdict(values, _ONE, _TWO, _TIES)


def _indexed(values: Values) -> dict[str, Any]:
    """The same, with completions and verdicts counted from 0."""
    return _verdict(values, ("0", "response_0"), ("1", "response_1"), ("tie", "-1"))


def _verdict(values: Values, one: tuple[str, ...], two: tuple[str, ...], ties: tuple[str, ...]) -> dict[str, Any]:
    verdict = values["better"]
    name = f"{verdict:g}" if is_number(verdict) else str(verdict).strip().lower()
    order = ("first", "second") if name in one else ("second", "first")
    if name in ties:
        return {"prompt": _prompt(values)}
    if name not in (*one, *two):
        raise RowError(f"unknown verdict {name[:40]!a}, neither {one[0]} nor {two[0]}", "better")
    if "prompt" in values:
        return pair(values, *order)
    return whole_pair(values, *order, to_messages)


def _prompt(values: Values) -> Any:
    return to_prompt(values) if "prompt" in values else to_messages(values["first"], "first")[:-1]


def _list_of(better: Callable[[float], float], field: str) -> Callable[[Values], list[dict[str, Any]]]:
    """Completions, and a number for each in another list."""

    def parse(values: Values) -> list[dict[str, Any]]:
        texts, numbers = values["candidates"], values[field]
        if len(texts) != len(numbers):
            raise RowError(f"{len(texts)} completions but {len(numbers)} {field}", field)
        scores = [better(to_number(number, field)) for number in numbers]
        return ranked_pairs(to_prompt(values), [_checked(text) for text in texts], scores)

    return parse


def _judged(values: Values) -> list[dict[str, Any]]:
    """Completions as objects with a text and a score, or a rank from 1."""
    texts, scores = [], []
    for item in values["candidates"]:
        if not isinstance(item, dict):
            raise RowError("a completion that is no object", "candidates")
        texts.append(_checked(next((item[name] for name in TEXTS if name in item), None)))
        score = next((item[name] for name in SCORES if name in item), None)
        scores.append(
            to_number(score, "candidates") if score is not None else -to_number(item.get("rank"), "candidates")
        )
    return ranked_pairs(to_prompt(values), texts, scores)


def _checked(text: object) -> str:
    said = to_text(text, "candidates")
    if not said.strip():
        raise RowError("empty completion: candidates", "candidates")
    return said


TEXTS = ("response", "completion", "answer", "text", "content", "output")
SCORES = ("score", "overall_score", "rating", "reward")


def _is_list(test: Callable[[object], bool], least: int = 2) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and len(value) >= least and all(test(item) for item in value)


def _is_judged(value: object) -> bool:
    return isinstance(value, dict) and any(name in value for name in TEXTS) and any(
        is_number(value.get(name)) for name in (*SCORES, "rank")
    )  # fmt: skip


def _is_verdict(value: object) -> bool:
    return isinstance(value, str | int | float)


DIALECTS = (
    DialectSpec(
        "preference", {"prompt": is_said, "chosen": is_said, "rejected": is_said},
        lambda values: pair(values, "chosen", "rejected"),
        "a prompt, `chosen` and `rejected` (texts or turns)", {"prompt": PROMPTS},
    ),
    DialectSpec(
        "preference_messages", {"chosen": is_turns, "rejected": is_turns},
        lambda values: whole_pair(values, "chosen", "rejected", to_messages),
        "`chosen` and `rejected` as whole conversations that differ in their last turn",
    ),
    DialectSpec(
        "preference_transcript", {"chosen": is_transcript, "rejected": is_transcript},
        lambda values: whole_pair(values, "chosen", "rejected", from_transcript),
        "the same as texts with `Human:` and `Assistant:` (HH-RLHF)",
    ),
    DialectSpec(
        "preference_labelled", {"prompt": is_said, "first": is_said, "second": is_said, "better": _is_verdict},
        _labelled, "two completions and which is better: 1 or 2, a or b", {"prompt": PROMPTS},
    ),
    DialectSpec(
        "preference_indexed", {"prompt": is_said, "first": is_said, "second": is_said, "better": _is_verdict},
        _indexed, "the same, counted from 0",
        {"prompt": PROMPTS, "first": ("response_0", "output_0", "answer_0"),
         "second": ("response_1", "output_1", "answer_1"),
         "better": ("better_response_id", *ALIASES["better"])},
    ),
    DialectSpec(
        "preference_judged_messages", {"first": is_turns, "second": is_turns, "better": _is_verdict}, _labelled,
        "two whole conversations and which is better",
    ),
    DialectSpec(
        "scored_list", {"prompt": is_said, "candidates": _is_list(is_text), "scores": _is_list(is_number)},
        _list_of(lambda score: score, "scores"), "several completions and their scores, higher is better",
        {"prompt": PROMPTS},
    ),
    DialectSpec(
        "ranked_list", {"prompt": is_said, "candidates": _is_list(is_text), "ranks": _is_list(is_number)},
        _list_of(lambda rank: -rank, "ranks"), "several completions and their ranks, lower is better",
        {"prompt": PROMPTS},
    ),
    DialectSpec(
        "judged_list", {"prompt": is_said, "candidates": _is_list(_is_judged)}, _judged,
        "several completions as objects with a score or a rank", {"prompt": PROMPTS},
    ),
)  # fmt: skip
