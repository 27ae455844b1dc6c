"""Files to the records of one stage: training and held-out part, with what the plan tells of them. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.data.draws import shuffled
from core.data.files import find_files
from core.data.formats import BUILT_IN, Formats
from core.data.info import DatasetInfo, PartInfo
from core.data.loading import Loaded, describe, load_records
from core.data.placeholders import placeholder_warnings
from core.data.record_store import StoredRecords, hash_keys
from core.data.records import BadRow, Record
from core.data.split import skew_warnings, split_for
from core.data.streaming import Served, is_streamed, stream_records
from core.data.views import as_schema, prompts_of, with_system
from core.errors import DataError
from core.settings.data_schema import DATA_PATH, DataConfig

_LOOKED_AT = 10_000
"""Records kept on disk that are looked at for placeholders."""


@dataclass(frozen=True)
class Dataset:
    """What a stage trains on and is judged by."""

    train: Sequence[Record]
    heldout: Sequence[Record]
    """Records of the same schema; no prompt of theirs is in `train`."""
    heldout_prompts: Sequence[Record]
    """Held-out prompts to generate for, each once, with `answer` where they have one; empty for raw text."""
    info: DatasetInfo
    quarantined: list[BadRow] = field(default_factory=list)
    """Rows that became no record."""
    set_aside: list[BadRow] = field(default_factory=list)
    """Records that a check of `data.transforms` dropped; nothing is wrong with their rows."""
    warnings: list[str] = field(default_factory=list)
    brings_heldout: bool = False
    """Whether the held-out records are those that the data names, and not drawn from its rows."""


def load_dataset(cfg: DataConfig, path: Path | str, schema: str, seed: int, formats: Formats = BUILT_IN) -> Dataset:
    """Training and held-out records for a stage.

    path: a file, a folder (see PARTS; `heldout.*` is the held-out part), a pattern, or a hub dataset (see HubId).
    schema: one of core.platform.specs.SCHEMAS.
    seed: draws the held-out prompts where the data brings no held-out part.
    Raises: ConfigError when there is nothing at `path`; DataError when its records cannot be read or do not serve.
    """
    files, heldout_files, root = find_files(path, schema, formats)
    load = partial(
        load_records,
        columns=cfg.columns,
        max_bad_frac=cfg.max_bad_frac,
        root=root,
        dialect=cfg.dialect,
        formats=formats,
    )
    if not isinstance(files, str) and is_streamed(cfg, files, schema):
        served = stream_records(cfg, files, root, schema, cfg.system, load)
    else:
        loaded = load(files)
        kept = as_schema(loaded.records, schema, loaded.dialects.values())
        unfit = len(loaded.records) - len(kept)
        served = Served(kept, unfit, describe(loaded), loaded.quarantined, loaded.heldout, loaded.warnings)
    train, warnings = served.records, served.warnings
    held = _heldout(load(heldout_files) if heldout_files else None, served)
    if cfg.shuffle:
        train = _shuffled(train, seed)
    train = train[: cfg.limit]
    heldout: Sequence[Record] = []
    doubled: int | None = None
    if held is not None:
        if cfg.folds:
            what = "data.folds holds out parts of the training rows, but the data brings a held-out part"
            mend = "leave data.folds out, or point {key} at the training file alone"
            raise DataError(what, "{files}", mend, key=DATA_PATH, files=", ".join(held.files))
        warnings = [*dict.fromkeys((*warnings, *held.warnings))]
        train, doubled = _without_prompts_of(held, train)
        heldout = _serving(held.records, schema)
    brings_heldout = bool(heldout)
    if not brings_heldout:
        train, heldout = split_for(cfg, train, seed)
        warnings = [*warnings, *skew_warnings(train, heldout)]
    prompts: Sequence[Record] = prompts_of(held.records if held is not None else heldout)
    if cfg.system:
        train, heldout, prompts = (_with_systems(part, cfg.system) for part in (train, heldout, prompts))
    digest = hashlib.sha256()
    for part in (train, heldout, prompts):
        hash_keys(digest, part)
    quarantined = [*served.quarantined, *(held.quarantined if held else [])]
    info = DatasetInfo(
        train=PartInfo(len(train), served.unfit, doubled, **served.described),
        heldout=PartInfo(len(heldout), prompts=len(prompts), **(held.described if held is not None else {})),
        quarantined=len(quarantined),
        fingerprint=digest.hexdigest(),
    )
    looked_at = train if isinstance(train, list) else train[:_LOOKED_AT]
    warnings = [*warnings, *placeholder_warnings(looked_at)]
    return Dataset(train, heldout, prompts, info, quarantined, [], warnings, brings_heldout)


@dataclass(frozen=True)
class _Heldout:
    """Records that the data holds out itself, and where they are from."""

    records: list[Record]
    files: list[str]
    described: dict[str, Any]
    """Fields of PartInfo; empty where the rows are those of training files."""
    quarantined: list[BadRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _heldout(loaded: Loaded | None, train: Served) -> _Heldout | None:
    """The held-out files' records and those that the training files hold out themselves; None where there are none."""
    if loaded is None:
        return _Heldout(train.heldout, train.described["files"], {}) if train.heldout else None
    records = [*loaded.records, *loaded.heldout, *train.heldout]
    return _Heldout(records, loaded.files, describe(loaded), loaded.quarantined, loaded.warnings)


def _without_prompts_of(held: _Heldout, train: Sequence[Record]) -> tuple[Sequence[Record], int]:
    """The training records whose prompt is not held out, and how many others there are."""
    kept = _without(train, {record.prompt_key for record in held.records})
    if not kept:
        what = "every training record has a prompt of the held-out part"
        raise DataError(what, ", ".join(held.files), "take other held-out records, or remove that file")
    return kept, len(train) - len(kept)


def _without(records: Sequence[Record], seen: set[str]) -> Sequence[Record]:
    """The records whose prompt is not among the keys `seen`."""
    if isinstance(records, StoredRecords):
        return records.without_prompts(seen)
    return [record for record in records if record.prompt_key not in seen]


def _shuffled(records: Sequence[Record], seed: int) -> Sequence[Record]:
    return records.shuffled(seed) if isinstance(records, StoredRecords) else shuffled(records, seed)


def _serving(records: Sequence[Record], schema: str) -> list[Record]:
    try:
        return as_schema(records, schema)
    except DataError:
        return []


def _with_systems(records: Sequence[Record], system: str) -> Sequence[Record]:
    """The records with a system message; those of a store have it already."""
    return records if isinstance(records, StoredRecords) else [with_system(record, system) for record in records]
