"""Dialects of a single column: prompts alone, raw text. Torch-free."""

from __future__ import annotations

from typing import Any

from core.data.dialects.fields import is_said, is_text
from core.data.dialects.parts import Values, to_prompt
from core.data.row_values import RowError, to_text
from core.platform.specs import DialectSpec


def _prompt_only(values: Values) -> dict[str, Any]:
    return {"prompt": to_prompt(values)}


def _raw_text(values: Values) -> dict[str, Any]:
    text = to_text(values["text"], "text")
    if not text.strip():
        raise RowError("empty text", "text")
    return {"text": text}


DIALECTS = (
    DialectSpec("prompts", {"prompt": is_said}, _prompt_only, "a prompt column alone"),
    DialectSpec("text", {"text": is_text}, _raw_text, "`text`"),
)
