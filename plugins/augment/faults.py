"""Why a text that was translated there and back is not taken. Torch-free."""

from __future__ import annotations

import re
from collections import Counter

from core.api import words_of

_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_PLACEHOLDER = re.compile(
    r"\{\{.*?\}\}|\{\w*\}|%\(\w+\)\w|%[sd]\b|\$\w*[A-Za-z]\w*|</?\w+[^<>]*>|\[[A-Z_]+\]|https?://\S+"
)
_ASKS = re.compile(r"[?？؟]")
"""A model that answers a question in place of translating it writes none."""
_TALK = re.compile(r"translat|traduction|traduire|traducción|übersetz", re.IGNORECASE)


def fault(text: str, in_pivot: str, new: str, max_ratio: float) -> str:
    """Why `new` does not stand for `text`; empty where nothing speaks against it.

    in_pivot: the text in the other language, out of which `new` was made.
    max_ratio: how many times as long the longer of the two may be, in characters.
    That the meaning is the same is not found out.
    """
    short, long = sorted((len(text), len(new)))
    found = {
        "not translated": words_of(in_pivot) == words_of(text),
        "equal to the original": words_of(new) == words_of(text),
        "numbers differ": _numbers(new) != _numbers(text),
        "placeholders differ": _placeholders(new) != _placeholders(text),
        "question mark differs": bool(_ASKS.search(new)) != bool(_ASKS.search(text)),
        "speaks of the translation": bool(_TALK.search(new)) and not _TALK.search(text),
        "length": long > max_ratio * short,
    }
    return next((reason for reason, holds in found.items() if holds), "")


def _numbers(text: str) -> Counter[str]:
    return Counter(_THOUSANDS.sub("", number) for number in _NUMBER.findall(text))


def _placeholders(text: str) -> Counter[str]:
    return Counter(_PLACEHOLDER.findall(text))
