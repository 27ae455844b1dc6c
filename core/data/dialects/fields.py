"""Canonical fields: the columns that they are looked for in, and the values that they take. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from core.data.turns import RowError, kind_of, to_text, to_tools

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction"),
    "input": ("input", "context"),
    "completion": ("completion", "response", "output", "target"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "response_j", "best_answer"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "response_k", "best_incorrect_answer"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "answer": ("answer",),
    "rationale": ("rationale", "chain_of_thought", "cot"),
    "label": ("label", "kto_tag"),
    "score": ("score", "reward"),
    "margin": ("margin",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "weight": ("weight", "loss_weight"),
    "tools": ("tools", "functions"),
    "turns": ("turns",),
    "instances": ("instances",),
    "body": ("body",),
    "contexts": ("contexts", "context"),
    "long_answer": ("long_answer",),
    "category": ("category", "intent", "label_text"),
    "tests": ("test_list", "tests"),
    "choices": ("choices", "options"),
    "beginnings": ("context_options",),
    "ending": ("continuation",),
    "gold": ("gold", "answer", "answerkey", "answer_key", "answer_idx", "label"),
    "option_1": ("a", "option_a", "option1", "choice1", "opa", "ending0", "column_2"),
    "option_2": ("b", "option_b", "option2", "choice2", "opb", "ending1", "column_3"),
    "option_3": ("c", "option_c", "option3", "choice3", "opc", "ending2", "column_4"),
    "option_4": ("d", "option_d", "option4", "choice4", "opd", "ending3", "column_5"),
    "first": ("output_1", "response_1", "answer_1", "completion_1", "response_a", "answer_a", "output_a",
              "conversation_a"),
    "second": ("output_2", "response_2", "answer_2", "completion_2", "response_b", "answer_b", "output_b",
               "conversation_b"),
    "better": ("label", "preference", "winner", "preferred", "choice", "better"),
    "candidates": ("responses", "completions", "outputs", "answers", "candidates", "generations"),
    "scores": ("scores", "ratings", "rewards"),
    "ranks": ("ranks", "rank", "ranking"),
    "steps": ("steps", "completions"),
    "labels": ("labels", "ratings"),
    "feedback": ("feedback", "errors", "spans"),
    "passages": ("passages",),
    "reference": ("gold", "reference"),
    "preferences": ("preference", "preferences"),
    "prediction_1": ("prediction_1", "prediction", "completion", "response", "output"),
    "prediction_2": ("prediction_2",),
    "prediction_3": ("prediction_3",),
    "prediction_4": ("prediction_4",),
    "generation": ("generation",),
}  # fmt: skip
"""Canonical fields, and the columns that they are looked for in, best first. Case does not matter there, and a space
or a hyphen is an underscore."""

COLUMNS = frozenset(name for names in ALIASES.values() for name in names if len(name) > 3)
"""Names by which a first line is known as a header."""


def normal(column: str) -> str:
    """A column's name as ALIASES has it."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


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
    "answer": to_answer, "rationale": to_text, "label": to_label, "score": to_number, "margin": to_number,
    "chosen_score": to_number, "rejected_score": to_number, "weight": to_number, "tools": to_tools,
    "system": to_text, "input": to_text,
}  # fmt: skip
"""Fields that any dialect takes along where a column of the right type is there."""

JOINED = ("system", "input")
"""Those of them that become part of the prompt."""


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_texts(value: object) -> bool:
    """A list of texts, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def has_turns(key: str) -> Callable[[object], bool]:
    """Whether a value is a list of turns whose speaker stands under `key`."""
    return lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def is_turns(value: object) -> bool:
    return has_turns("role")(value) or has_turns("from")(value)


def is_said(value: object) -> bool:
    """A text, one turn, or several."""
    return is_text(value) or is_turns([value] if isinstance(value, dict) else value)
