"""The set that a stage trains on: its sources loaded, transforms over all of them, then the mixture. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path

from core.data.dataset import Dataset, load_dataset
from core.data.formats import BUILT_IN, Formats
from core.data.info import DatasetInfo, PartInfo, SourceInfo
from core.data.mixing import mixed
from core.data.records import Record, fingerprint
from core.data.transforming import BoundTransform, apply_transforms
from core.data.views import prompts_of, with_system
from core.errors import DataError, PreftuneError
from core.settings.convert import placed
from core.settings.data_schema import Choice, DataConfig, SourceConfig


def build_dataset(
    cfg: DataConfig,
    places: Path | str | Mapping[str, Path | str],
    schema: str,
    seed: int,
    transforms: Sequence[BoundTransform] = (),
    formats: Formats = BUILT_IN,
) -> Dataset:
    """Training and held-out records for a stage.

    places: where the records are, as `load_dataset` takes it; of a mixture by the names of its sources.
    seed: draws what is drawn; `cfg.seed` wins over it.
    Raises what `load_dataset` raises; DataError when no record is left; PluginError when a transform fails.
    """
    seed = seed if cfg.seed is None else cfg.seed
    if isinstance(places, Mapping):
        loaded = {name: _load_source(cfg, name, place, schema, seed, formats) for name, place in places.items()}
    elif transforms:
        loaded = {"": load_dataset(replace(cfg, system=None, stream=Choice.never), places, schema, seed, formats)}
    else:
        return load_dataset(cfg, places, schema, seed, formats)
    parts = list(loaded.values())
    brought = _in_turn([part.heldout for part in parts if part.brings_heldout])
    drawn = _in_turn([part.heldout for part in parts if not part.brings_heldout])
    train, known = _training(
        loaded, {record.prompt_key for part in parts for record in (*part.heldout, *part.heldout_prompts)}
    )
    built = apply_transforms(train, drawn, brought, transforms, seed)
    train, heldout = built.train, [*brought, *built.drawn]
    gone = {record.prompt_key for record in drawn} - {record.prompt_key for record in built.drawn}
    prompts = prompts_of(
        record for record in _in_turn([part.heldout_prompts for part in parts]) if record.prompt_key not in gone
    )
    described: dict[str, SourceInfo] = {}
    if isinstance(places, Mapping):
        train, described = mixed(cfg, train, heldout, seed, known)
        train = train[: cfg.limit]
    if cfg.system:
        train, heldout, prompts = (
            [with_system(record, cfg.system) for record in part] for part in (train, heldout, prompts)
        )
    # Of the one source the facts as they are, of a mixture the sums.
    alone = loaded[""].info if "" in loaded else None
    info = DatasetInfo(
        train=replace(known[""] if alone else PartInfo(), records=len(train)),
        heldout=replace(alone.heldout if alone else PartInfo(), records=len(heldout), prompts=len(prompts)),
        quarantined=sum(part.info.quarantined for part in parts),
        fingerprint=fingerprint(chain(train, heldout, prompts)),
        mixture=described,
        mixing=cfg.mixing.value if described else "",
        transforms=built.reports,
    )
    warnings = [*dict.fromkeys(chain(*(part.warnings for part in parts), built.warnings))]
    quarantined = [row for part in parts for row in part.quarantined]
    return Dataset(train, heldout, prompts, info, quarantined, built.set_aside, warnings, bool(brought))


def _load_source(cfg: DataConfig, name: str, place: Path | str, schema: str, seed: int, formats: Formats) -> Dataset:
    """One source of a mixture, its records and bad rows under its name."""
    own = replace(
        cfg, columns=cfg.mixture[name].columns, dialect=cfg.mixture[name].dialect, mixture={}, mix_size=None,
        mix_rate_max=None, limit=None, system=None, stream=Choice.never,
        heldout_max=math.ceil(cfg.heldout_max / len(cfg.mixture)),
    )  # fmt: skip
    try:
        part = load_dataset(own, place, schema, seed, formats)
    except PreftuneError as error:
        raise placed(error, SourceConfig, f"data.mixture.{name}", "data") from error
    return replace(
        part,
        train=[_under(name, record) for record in part.train],
        heldout=[_under(name, record) for record in part.heldout],
        heldout_prompts=[_under(name, record) for record in part.heldout_prompts],
        quarantined=[replace(row, file=f"{name}/{row.file}") for row in part.quarantined],
    )


def _under(name: str, record: Record) -> Record:
    return replace(record, meta={**record.meta, "source": name, "file": f"{name}/{record.meta['file']}"})


def _training(loaded: Mapping[str, Dataset], heldout: set[str]) -> tuple[list[Record], dict[str, PartInfo]]:
    """The training records of all sources, those left out whose prompt another source holds out, and what is known of
    each source."""
    kept: list[Record] = []
    known: dict[str, PartInfo] = {}
    for name, part in loaded.items():
        own = [record for record in part.train if record.prompt_key not in heldout]
        if not own:
            what = "every training record has a prompt of the held-out part"
            raise DataError(what, f"data.mixture.{name}", "leave the source out, or take other held-out records")
        known[name] = part.info.train
        if gone := len(part.train) - len(own):
            known[name] = replace(known[name], also_heldout=(known[name].also_heldout or 0) + gone)
        kept += own
    return kept, known


def _in_turn(parts: Sequence[Sequence[Record]]) -> list[Record]:
    """The first record of each part, then the second of each, so that any beginning shows all parts."""
    return [record for row in zip_longest(*parts) for record in row if record is not None]
