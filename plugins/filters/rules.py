"""Filters that count: bounds of length, and the document rules of Rae et al. 2021, arXiv:2112.11446, table A1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from core.api import Record, text_of, words_of
from plugins.filters import LengthConfig, QualityConfig

STOP_WORDS = frozenset("the be to of and that have with".split())
BULLETS = ("•", "‣", "●", "-", "*", "–")
ELLIPSES = ("...", "…")


def length(config: LengthConfig) -> Callable[[Record], str]:
    """The filter `length`."""

    def judge(record: Record) -> str:
        text = text_of(record, config.of)
        if config.min_chars and len(text) < config.min_chars:
            return f"too short: {len(text)} characters, min_chars={config.min_chars}"
        if config.max_chars and len(text) > config.max_chars:
            return f"too long: {len(text)} characters, max_chars={config.max_chars}"
        if config.min_words or config.max_words:
            count = len(words_of(text))
            if count < config.min_words:
                return f"too short: {count} words, min_words={config.min_words}"
            if config.max_words and count > config.max_words:
                return f"too long: {count} words, max_words={config.max_words}"
        return ""

    return judge


def quality(config: QualityConfig) -> Callable[[Record], str]:
    """The filter `quality`."""
    return lambda record: fault(text_of(record, config.of), config)


def fault(text: str, config: QualityConfig) -> str:
    """The first rule that a text breaks; empty where it breaks none. Words are what stands between blanks."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not config.min_words <= len(words) <= config.max_words:
        return f"number of words: {len(words)}"
    if not words:
        return ""
    mean = sum(map(len, words)) / len(words)
    measured = (
        ("mean word length", mean, config.min_mean_word_chars, config.max_mean_word_chars),
        ("hash signs", text.count("#") / len(words), 0.0, config.max_symbol_ratio),
        ("ellipses", sum(map(text.count, ELLIPSES)) / len(words), 0.0, config.max_symbol_ratio),
        ("bullet lines", _share(lines, lambda line: line.startswith(BULLETS)), 0.0, config.max_bullet_lines),
        ("ellipsis lines", _share(lines, lambda line: line.endswith(ELLIPSES)), 0.0, config.max_ellipsis_lines),
        ("alphabetic words", _share(words, lambda word: any(map(str.isalpha, word))), config.min_alphabetic_words, 1.0),
        ("stop words", len(STOP_WORDS & set(words_of(text))), config.min_stop_words, len(STOP_WORDS)),
        ("duplicate lines", 1 - len(set(lines)) / len(lines), 0.0, config.max_duplicate_lines),
        ("most frequent 2 words", _top_ngram(words, 2), 0.0, config.max_top_bigram),
        ("most frequent 3 words", _top_ngram(words, 3), 0.0, config.max_top_trigram),
    )
    return next((f"{name}: {value:.3g}" for name, value, low, high in measured if not low <= value <= high), "")


def _share(items: list[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, items)) / len(items)


def _top_ngram(words: list[str], n: int) -> float:
    """Share of the words' characters that stand in the most frequent n words in a row; 0 where none comes twice."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        return 0.0
    ngram, times = max(counts.items(), key=lambda item: item[1] * sum(map(len, item[0])) * (item[1] > 1))
    return times * sum(map(len, ngram)) / sum(map(len, words)) if times > 1 else 0.0
