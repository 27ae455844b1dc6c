"""What a stage would train on: its examples by source, counted, with the tokens of a few. Torch-free at import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from core.commands.preview.estimate import estimate, stage_examples, token_rows, weighted_ids
from core.data.records import BadRow, Record
from core.data.unread import column_pairs
from core.errors import DataError
from core.planning.plan import Plan, StagePlan
from core.planning.plan_record import StagePreview
from core.platform.registry import Registry
from core.tokens.codec import ChatCodec
from core.tokens.heatmap import TokenRow

BINS = 12
"""Bars of the length histogram."""


@dataclass
class SourceSample:
    """What was found in the sampled records of one file."""

    name: str
    records: int = 0
    """Sampled records."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each example."""
    tokens: int = 0
    """Tokens of all rows; a pair is two rows."""
    trained: int = 0
    """Those with a weight."""
    refused: Counter[str] = field(default_factory=Counter)
    """Reason to number of records that the stage refuses, e.g. because they are too long."""
    rows: list[TokenRow] = field(default_factory=list)

    @property
    def trained_share(self) -> float:
        """Share of the tokens that has a weight, 0..1."""
        return self.trained / max(self.tokens, 1)


@dataclass
class Preview:
    """What a stage would train on, from `sampled` of its `records`."""

    title: str
    model: str
    max_length: int
    records: int
    sampled: int
    sources: list[SourceSample]
    facts: StagePreview
    """Steps, batch and cost, as in plan.json."""
    quarantined: list[BadRow]
    """Rows that became no record."""
    columns: list[str]
    """Lines on the columns: what is read as what, what is not read, and what to be warned of."""

    @property
    def whole(self) -> SourceSample:
        """All sources together."""
        total = SourceSample("all")
        for source in self.sources:
            total.records += source.records
            total.lengths += source.lengths
            total.tokens += source.tokens
            total.trained += source.trained
            total.refused += source.refused
        return total

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over all records, extrapolated from the sample."""
        return round(sum(self.whole.lengths) / max(self.sampled, 1) * self.records)


def collect(plan: Plan, stage: StagePlan, registry: Registry, codec: ChatCodec, sample: int, rows: int) -> Preview:
    """Make the stage's examples of up to `sample` records, evenly drawn, source by source, and count.

    rows: examples of each source whose tokens are kept.
    Raises DataError when no record becomes an example.
    """
    train = stage.dataset.train
    step = max(1, -(-len(train) // sample))
    by_source: dict[str, list[Record]] = {}
    for record in train[::step]:
        by_source.setdefault(str(record.meta.get("source", "")), []).append(record)
    sources = []
    shown: list[Any] = []
    failure: DataError | None = None
    for name, records in by_source.items():
        source = SourceSample(Path(name).name or "generated", len(records))
        examples: Sequence[Any] = []
        try:
            examples, dropped = stage_examples(plan, stage, registry, codec, records)
            source.refused.update(_kind(row.reason) for row in dropped)
        except DataError as error:
            failure = error
            source.refused[error.what] += len(records)
        for place, example in enumerate(examples):
            source.lengths.append(example.tokens)
            for row in weighted_ids(example):
                source.tokens += len(row.ids)
                source.trained += sum(weight != 0 for weight in row.weights)
            if place < rows:
                source.rows += token_rows(example, codec)
        shown += examples
        sources.append(source)
    if not shown and failure is not None:
        raise failure
    sampled = sum(source.records for source in sources)
    return Preview(
        stage.title, stage.cfg.model.source, stage.cfg.model.max_length, len(train), sampled, sources,
        estimate(stage, shown), list(stage.dataset.quarantined), _columns(stage),
    )  # fmt: skip


def _columns(stage: StagePlan) -> list[str]:
    told = [f"{label}: {text}" for label, text in column_pairs(stage.dataset.info.train)]
    return told + [f"warning: {text}" for text in stage.dataset.warnings]


def _kind(reason: str) -> str:
    """A reason without the row's own number, so that equal ones can be counted."""
    return reason.partition(", ")[2] if reason[:1].isdigit() and ", " in reason else reason


def histogram(lengths: Sequence[int], bins: int = BINS) -> list[tuple[int, int, int]]:
    """(least tokens, most tokens, examples) of bars of equal width; empty without lengths."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter((length - low) // width for length in lengths)
    last = max(counts)
    return [(low + bar * width, low + (bar + 1) * width - 1, counts[bar]) for bar in range(last + 1)]


def row_of(source: SourceSample) -> list[str]:
    """A source's numbers as texts, in the order of HEAD."""
    lengths = sorted(source.lengths) or [0]
    return [
        source.name, f"{source.records:,}", f"{len(source.lengths):,}", f"{source.refused.total():,}",
        f"{median(lengths):,.0f}", f"{lengths[int(0.95 * (len(lengths) - 1))]:,}", f"{lengths[-1]:,}",
        f"{source.tokens:,}", f"{source.trained_share:.1%}",
    ]  # fmt: skip


HEAD = ("source", "records", "examples", "refused", "median", "95 %", "longest", "tokens", "trained")


def lines_of(found: Preview) -> list[str]:
    """What is said about the whole."""
    whole, facts = found.whole, found.facts
    lines = [
        f"{found.sampled:,} of {found.records:,} records; {len(whole.lengths):,} examples, "
        f"{whole.trained:,} of {whole.tokens:,} tokens trained ({whole.trained_share:.1%})",
        f"one epoch ≈ {found.epoch_tokens:,} tokens; {facts.total_steps:,} steps of {facts.batch.text}",
    ]
    if facts.time_estimate:
        lines.append(f"cost ≈ {facts.time_estimate}, {facts.memory_estimate}")
    lines += [f"refused: {count:,} × {reason}" for reason, count in whole.refused.most_common(5)]
    lines += found.columns
    if found.quarantined:
        lines.append(f"in quarantine: {len(found.quarantined):,} rows, the first: {found.quarantined[0]}")
    return lines
