"""Filters of records by length, language and quality. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import TextPart, TransformConfig, TransformSpec, hookimpl, number, require


@dataclass
class LengthConfig(TransformConfig):
    """Settings of `length`; a bound of 0 is none."""

    of: TextPart = TextPart.record
    """What is measured: the whole `record`, its `prompt` or its `completion` (raw text counts as completion)."""
    min_chars: int = number(0, at_least=0)
    """Fewest characters."""
    max_chars: int = number(0, at_least=0)
    """Most characters."""
    min_words: int = number(0, at_least=0)
    """Fewest words."""
    max_words: int = number(0, at_least=0)
    """Most words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for least, most in (("min_chars", "max_chars"), ("min_words", "max_words")):
            low, high = getattr(self, least), getattr(self, most)
            require(high == 0 or high >= low, most, f"0 or >= {least}", high)


@dataclass
class LanguageConfig(TransformConfig):
    """Settings of `language`."""

    keep: list[str] = field(default_factory=lambda: ["en"])
    """ISO 639-1 codes of the languages that stay."""
    of: TextPart = TextPart.record
    """What is looked at."""
    min_chars: int = number(20, at_least=0)
    """Shorter texts stay: nothing certain can be said of them."""
    min_probability: float = number(0.0, at_least=0, at_most=1)
    """A record also goes when its language is less certain than this, 0..1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.keep), "keep", "a list of language codes", self.keep)


@dataclass
class QualityConfig(TransformConfig):
    """Settings of `quality`: the document rules of Rae et al. 2021, arXiv:2112.11446, table A1, with their values. They
    are meant for web documents; lower `min_words` and `min_stop_words` for short answers."""

    of: TextPart = TextPart.completion
    """What is judged."""
    min_words: int = number(50, at_least=0)
    """Fewest words."""
    max_words: int = number(100_000, at_least=0)
    """Most words."""
    min_mean_word_chars: float = number(3.0, at_least=0)
    """Smallest mean length of a word in characters."""
    max_mean_word_chars: float = number(10.0, above=0)
    """Largest mean length of a word in characters."""
    max_symbol_ratio: float = number(0.1, at_least=0)
    """Most hash signs, and most ellipses, to a word."""
    max_bullet_lines: float = number(0.9, at_least=0, at_most=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = number(0.3, at_least=0, at_most=1)
    """Largest share of lines that end in an ellipsis."""
    min_alphabetic_words: float = number(0.8, at_least=0, at_most=1)
    """Smallest share of words with a letter in them."""
    min_stop_words: int = number(2, at_least=0, at_most=8)
    """Fewest different ones of: the, be, to, of, and, that, have, with. 0 for other languages than English."""
    max_duplicate_lines: float = number(0.3, at_least=0, at_most=1)
    """Largest share of lines that repeat an earlier one."""
    max_top_bigram: float = number(0.2, at_least=0, at_most=1)
    """Largest share of characters in the most frequent pair of words."""
    max_top_trigram: float = number(0.18, at_least=0, at_most=1)
    """Largest share of characters in the most frequent three words in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for least, most in (("min_words", "max_words"), ("min_mean_word_chars", "max_mean_word_chars")):
            low, high = getattr(self, least), getattr(self, most)
            require(low <= high, least, f"at most {most}={high}", low)


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
