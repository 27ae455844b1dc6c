"""Exact and near de-duplication. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import Record, TextPart, TransformConfig, TransformSpec, hookimpl, number


@dataclass
class ExactConfig(TransformConfig):
    """Settings of `dedup_exact`."""

    of: TextPart = TextPart.record
    """What must be equal: the whole `record`, its `prompt` or its `completion` (raw text counts as completion)."""
    loose: bool = True
    """Case, punctuation, white space and compatibility forms make no difference."""


@dataclass
class NearConfig(TransformConfig):
    """Settings of `dedup_near`."""

    of: TextPart = TextPart.record
    """What must be alike."""
    threshold: float = number(0.8, above=0, at_most=1)
    """Jaccard similarity of the sets of word n-grams, 0..1, from which two records count as duplicates."""
    ngram: int = number(3, above=0, at_most=1000)
    """Words in a row that make one element of the sets."""
    permutations: int = number(128, at_least=16, at_most=1024)
    """Numbers in a MinHash signature; more find more of the pairs near the threshold."""


@hookimpl
def register_record_transforms() -> list[TransformSpec]:
    """The two de-duplications."""
    return [
        TransformSpec("dedup_exact", ExactConfig, "plugins.dedup.exact:build", "dedup", "1",
                      "keeps the first of equal training records, and none that is equal to a held-out one"),
        TransformSpec("dedup_near", NearConfig, "plugins.dedup.near:build", "dedup", "1",
                      "the same for records that are nearly equal, found by MinHash", ("rensa",)),
    ]  # fmt: skip


def place(record: Record) -> str:
    """File and line of a record, for reasons."""
    return f"{record.meta.get('file', '')}, line {record.meta.get('line', 0)}"
