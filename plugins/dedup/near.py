"""The transform `dedup_near`: MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022, arXiv:2107.06499)
find pairs that may be alike; the sets themselves then say how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rensa import RMinHash, RMinHashLSH

from core.api import Record, TransformContext, Transformed, text_of, words_of
from plugins.dedup import NearConfig, place

RECALL = 0.98
"""Least probability with which a pair at the threshold is looked at."""
SEED = 1
"""The signatures' own; the outcome hardly depends on it."""
BATCH = 1000
"""Records whose n-grams are held as texts at once."""


def bands_for(threshold: float, permutations: int) -> int:
    """Fewest bands that find a pair at the threshold with probability RECALL: fewer bands give fewer false hits.

    A pair with similarity s shares a band of r numbers with probability 1 - (1 - s^r)^(permutations / r).
    """
    fitting = [
        permutations // rows
        for rows in range(1, permutations + 1)
        if permutations % rows == 0 and 1 - (1 - threshold**rows) ** (permutations // rows) >= RECALL
    ]
    return min(fitting, default=permutations)


def ngrams(text: str, n: int) -> list[str]:
    """Distinct runs of n words; the whole text where it has fewer."""
    words = words_of(text)
    runs = (" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))
    return list(dict.fromkeys(run for run in runs if run))


def build(config: NearConfig) -> Callable[[Sequence[Record], TransformContext], Transformed]:
    """The transform."""

    def signed(records: Sequence[Record]) -> Iterator[tuple[Record, frozenset[int], RMinHash]]:
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            grams = [ngrams(text_of(record, config.of), config.ngram) for record in batch]
            signatures = RMinHash.from_token_sets(grams, num_perm=config.permutations, seed=SEED)
            for record, own, signature in zip(batch, grams, signatures, strict=True):
                yield record, frozenset(map(hash, own)), signature

    def apply(records: Sequence[Record], context: TransformContext) -> Transformed:
        index = RMinHashLSH(config.threshold, config.permutations, bands_for(config.threshold, config.permutations))
        known: list[tuple[Record, frozenset[int], str]] = []
        outcome = Transformed([])

        def nearest(grams: frozenset[int], signature: RMinHash) -> tuple[float, int]:
            found = index.query(signature) if grams else []
            return max(((_jaccard(grams, known[key][1]), -key) for key in found), default=(0.0, 0))

        def learn(record: Record, grams: frozenset[int], signature: RMinHash, kind: str) -> None:
            index.insert(len(known), signature)
            known.append((record, grams, kind))

        for record, grams, signature in signed(context.heldout):
            learn(record, grams, signature, "a held-out record")
        for record, grams, signature in signed(records):
            similarity, key = nearest(grams, signature)
            if similarity >= config.threshold:
                other, _, kind = known[-key]
                outcome.dropped.append((record, f"near to {kind}: {place(other)}, Jaccard {similarity:.2f}"))
            else:
                outcome.records.append(record)
                learn(record, grams, signature, "an earlier record")
        return outcome

    return apply


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)
