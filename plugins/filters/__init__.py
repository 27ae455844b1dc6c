"""Filters of records by length, language and quality. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import TextPart, TransformConfig, TransformSpec, hookimpl, require


@dataclass
class LengthConfig(TransformConfig):
    """Settings of `length`; a bound of 0 is none."""

    of: TextPart = TextPart.record
    """What is measured: the whole `record`, its `prompt` or its `completion` (raw text counts as completion)."""
    min_chars: int = 0
    """Fewest characters."""
    max_chars: int = 0
    """Most characters."""
    min_words: int = 0
    """Fewest words."""
    max_words: int = 0
    """Most words."""

    def __post_init__(self) -> None:
        for least, most in (("min_chars", "max_chars"), ("min_words", "max_words")):
            low, high = getattr(self, least), getattr(self, most)
            require(low >= 0, least, ">= 0", low)
            require(high == 0 or high >= low, most, f"0 or >= {least}", high)


@dataclass
class LanguageConfig(TransformConfig):
    """Settings of `language`."""

    keep: list[str] = field(default_factory=lambda: ["en"])
    """ISO 639-1 codes of the languages that stay."""
    of: TextPart = TextPart.record
    """What is looked at."""
    min_chars: int = 20
    """Shorter texts stay: nothing certain can be said of them."""
    min_probability: float = 0.0
    """A record also goes when its language is less certain than this, 0..1."""

    def __post_init__(self) -> None:
        require(bool(self.keep), "keep", "a list of language codes", self.keep)
        require(self.min_chars >= 0, "min_chars", ">= 0", self.min_chars)
        require(0 <= self.min_probability <= 1, "min_probability", "between 0 and 1", self.min_probability)


@dataclass
class QualityConfig(TransformConfig):
    """Settings of `quality`: the document rules of Rae et al. 2021, arXiv:2112.11446, table A1, with their values. They
    are meant for web documents; lower `min_words` and `min_stop_words` for short answers."""

    of: TextPart = TextPart.completion
    """What is judged."""
    min_words: int = 50
    """Fewest words."""
    max_words: int = 100_000
    """Most words."""
    min_mean_word_chars: float = 3.0
    """Smallest mean length of a word in characters."""
    max_mean_word_chars: float = 10.0
    """Largest mean length of a word in characters."""
    max_symbol_ratio: float = 0.1
    """Most hash signs, and most ellipses, to a word."""
    max_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end in an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Smallest share of words with a letter in them."""
    min_stop_words: int = 2
    """Fewest different ones of: the, be, to, of, and, that, have, with. 0 for other languages than English."""
    max_duplicate_lines: float = 0.3
    """Largest share of lines that repeat an earlier one."""
    max_top_bigram: float = 0.2
    """Largest share of characters in the most frequent pair of words."""
    max_top_trigram: float = 0.18
    """Largest share of characters in the most frequent three words in a row."""

    def __post_init__(self) -> None:
        require(0 <= self.min_words <= self.max_words, "min_words", "between 0 and max_words", self.min_words)
        require(self.min_stop_words >= 0, "min_stop_words", ">= 0", self.min_stop_words)
        for name in ("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words", "max_duplicate_lines",
                     "max_top_bigram", "max_top_trigram"):  # fmt: skip
            require(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))


@hookimpl
def register_record_transforms() -> list[TransformSpec]:
    """The filters."""
    return [
        TransformSpec("length", LengthConfig, "plugins.filters.rules:length", "filter", "1",
                      "keeps records within bounds of characters and words"),
        TransformSpec("language", LanguageConfig, "plugins.filters.language:build", "filter", "1",
                      "keeps records in the named languages", ("py3langid",)),
        TransformSpec("quality", QualityConfig, "plugins.filters.rules:quality", "filter", "1",
                      "drops records by Gopher's rules for web documents"),
    ]  # fmt: skip
