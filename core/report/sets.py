"""What the plan says of set building, in lines for people."""

from __future__ import annotations

from core.data.info import DatasetInfo
from core.report.format import Pairs, count, text_of


def mixture_pairs(data: DatasetInfo) -> Pairs:
    """Source and what it gives to the mixture."""
    return [
        (
            name,
            f"{count(source.records)} drawn of {count(source.capped)}, weight {source.weight:.3g}, "
            f"{source.passes:.3g} passes, {count(source.heldout)} held out",
        )
        for name, source in data.mixture.items()
    ]


def transform_pairs(data: DatasetInfo) -> Pairs:
    """Transform and what it did, in order."""
    pairs: Pairs = []
    for step in data.transforms:
        parts = [f"{count(step.before)} → {count(step.kept + step.added)}"]
        dropped = f"{count(step.dropped)} dropped"
        if step.reasons:
            reasons = ", ".join(f"{reason} {count(times)}" for reason, times in list(step.reasons.items())[:4])
            dropped += f" ({reasons})"
        parts += [dropped] if step.dropped else []
        parts += [f"{count(step.added)} added"] if step.added else []
        parts += [f"{count(step.heldout_dropped)} held out dropped"] if step.heldout_dropped else []
        pairs.append((step.name, ", ".join(parts)))
    return pairs


def example_pairs(data: DatasetInfo) -> Pairs:
    """Transform and two of the records that it dropped or added."""
    return [
        (f"{step.name} example", f"{one.file}:{text_of(one.line)}: {one.reason}: {one.text}")
        for step in data.transforms
        for one in step.examples[:2]
    ]
