"""Exact and near de-duplication. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import Record, TextPart, TransformConfig, TransformSpec, hookimpl, require


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
    threshold: float = 0.8
    """Jaccard similarity of the sets of word n-grams, 0..1, from which two records count as duplicates."""
    ngram: int = 3
    """Words in a row that make one element of the sets."""
    permutations: int = 128
    """Numbers in a MinHash signature; more find more of the pairs near the threshold."""

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", "in (0, 1]", self.threshold)
        require(self.ngram > 0, "ngram", "> 0", self.ngram)
        require(16 <= self.permutations <= 1024, "permutations", "between 16 and 1024", self.permutations)


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
