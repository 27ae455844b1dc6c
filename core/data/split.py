"""Training and held-out records, in memory or on disk. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.data.draws import drawn_places, held_out, in_fold
from core.data.record_store import StoredRecords
from core.data.records import Record
from core.settings.data_schema import DataConfig


def split_for(cfg: DataConfig, records: Sequence[Record], seed: int) -> tuple[Sequence[Record], Sequence[Record]]:
    """Training and held-out records as the config asks for them: a fold, or a share of the prompts."""
    if cfg.folds is None or cfg.fold is None:
        return split(records, cfg.heldout_frac, cfg.heldout_max, seed)
    return _parted(records, in_fold(list(_prompt_keys(records)), cfg.fold, cfg.folds, seed))


def split(records: Sequence[Record], frac: float, most: int, seed: int) -> tuple[Sequence[Record], Sequence[Record]]:
    """Training and held-out records, parted by what their prompts draw, see core.data.draws.held_out."""
    return _parted(records, held_out(drawn_places(_prompt_keys(records), seed), frac, most))


_SKEWED = 10
"""Records from which on a half that is held out is told."""


def skew_warnings(train: Sequence[Record], heldout: Sequence[Record]) -> list[str]:
    """A warning where most records are held out: equal prompts stand on one side, however many they are."""
    count = len(train) + len(heldout)
    if count < _SKEWED or 2 * len(heldout) < count:
        return []
    prompts = len({record.prompt_key for record in heldout})
    mend = "bring a held-out part of your own, or set data.heldout_max"
    return [f"{len(heldout)} of {count} records are held out, as equal prompts ({prompts}) stay together; {mend}"]


def _prompt_keys(records: Sequence[Record]) -> Iterable[str]:
    if isinstance(records, StoredRecords):
        return records.prompt_keys()
    return (record.prompt_key for record in records)


def _parted(records: Sequence[Record], held: Iterable[bool]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records that are not held out, and those that are."""
    if isinstance(records, StoredRecords):
        marks = list(held)
        return records.where(marks, False), list(records.where(marks))
    parts: tuple[list[Record], list[Record]] = [], []
    for record, out in zip(records, held, strict=True):
        parts[int(out)].append(record)
    return parts
