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
_TALK = re.compile(r"translat|traduction|traduire|traducción|übersetz", re.IGNORECASE)


def fault(text: str, in_pivot: str, new: str, max_ratio: float) -> str:
    """Why `new` does not stand for `text`; empty where nothing speaks against it.

    in_pivot: the text in the other language, out of which `new` was made.
    max_ratio: how many times as long the longer of the two may be, in characters.
    That the meaning is the same is not found out.
    """
    if words_of(in_pivot) == words_of(text):
        return "not translated"
    if words_of(new) == words_of(text):
        return "equal to the original"
    if _numbers(new) != _numbers(text):
        return "numbers differ"
    if _placeholders(new) != _placeholders(text):
        return "placeholders differ"
    if _TALK.search(new) and not _TALK.search(text):
        return "speaks of the translation"
    short, long = sorted((len(text), len(new)))
    return "length" if long > max_ratio * short else ""


def _numbers(text: str) -> Counter[str]:
    return Counter(_THOUSANDS.sub("", number) for number in _NUMBER.findall(text))


def _placeholders(text: str) -> Counter[str]:
    return Counter(_PLACEHOLDER.findall(text))
