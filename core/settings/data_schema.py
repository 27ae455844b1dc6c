"""The typed configuration of the records: where they come from and how a set is built of them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from core.errors import ConfigError
from core.settings.ranges import MANY, Checked, number
from core.settings.rules import require

DATA_PATH = "data.path"
"""The setting that names the records of a run."""
COLUMNS, DIALECT = "data.columns", "data.dialect"
"""The settings that say of the rows what they do not say themselves."""


class Mixing(str, Enum):
    """How the sources of a mixture are weighed."""

    proportional = "proportional"
    fixed = "fixed"
    temperature = "temperature"


class Choice(str, Enum):
    """Whether something is done."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class TransformConfig(Checked):
    """What every record transform needs; a transform's own dataclass extends it."""

    name: str = ""
    """Transform name, as in `data.transforms=[{name: …}]`."""


@dataclass
class SourceConfig(Checked):
    """One source of a mixture; its checks are the mixture's, which knows its name."""

    path: str | None = None
    """File, folder or hub id of the source's records."""
    source: str | None = None
    """Name of a registered data source, in place of `path`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Canonical field to column, as in `data.columns`."""
    dialect: str | None = None
    """Name of the layout of its rows, as in `data.dialect`."""
    cap: int | None = number(None, above=0)
    """Most training records that count as there, drawn by the seed; unset takes all."""
    rate: float | None = number(None, above=0)
    """Weight of the source beside the other sources' rates; `mixing=fixed` alone asks for it."""


@dataclass
class DataConfig(Checked):
    """Which records are used."""

    source: str | None = None
    """Name of a registered data source (a generator), e.g. `demo`."""
    path: str | None = None
    """File, folder or pattern of files, or a dataset of the hub as `owner/name:split`; wins over `source`. A folder may
    hold sft.jsonl, preference.jsonl, prompts.jsonl, heldout.jsonl; any other file serves every stage whose schema can
    be read from its rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Canonical field to column of the file, e.g. `{prompt: question}`; found from the rows when unset."""
    dialect: str | None = None
    """Name of the layout of the rows (see docs/data.md); found from the rows when unset."""
    heldout_frac: float = number(0.1, at_least=0, below=1)
    """Share of the records held out when the data brings no held-out part."""
    heldout_max: int = number(200, at_least=0)
    """Most records held out."""
    limit: int | None = number(None, above=0)
    """Use only the first so many records."""
    max_bad_frac: float = number(0.05, at_least=0, at_most=1)
    """Share of unreadable rows above which the run stops."""
    system: str | None = None
    """System message put before prompts that have none."""
    seed: int | None = number(None, at_least=0, below=2**32)
    """Draws held-out part, folds, order, mixture and augmentation; unset takes `runtime.seed`."""
    shuffle: bool = False
    """Put the training records in an order drawn by the seed before `limit` takes the first."""
    folds: int | None = number(None, above=1, at_most=MANY)
    """Number of parts of a cross-validation; one of them is held out in place of `heldout_frac`."""
    fold: int | None = number(None, above=0, at_most=MANY)
    """Which of the `folds` is held out, counted from 1."""
    mixture: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name, e.g. `data.mixture.faq.path=faq.csv`, in place of `path`; wins over `source`."""
    mixing: Mixing = Mixing.proportional
    """Weight of a source: its size up to `mix_rate_max`, its `rate`, or its size to the power 1 / `mix_temperature`."""
    mix_size: int | None = number(None, above=0)
    """Training records drawn; unset takes as many as can be had without repeating one."""
    mix_rate_max: int | None = number(None, above=0)
    """Size above which a source gains no weight (3000 in FLAN); unset has no bound."""
    mix_temperature: float = number(2.0, at_least=1)
    """Temperature of `mixing=temperature`: 1 is proportional, large values make the sources equal."""
    transforms: list[Any] = field(default_factory=list)
    """Filters, de-duplication, augmentation and checks in their order, e.g. `[{name: length, min_chars: 20}]`."""
    stream: Choice = Choice.auto
    """Keep records on disk instead of in memory (schemas `sft`, `text` and `preference`); auto does so for files over
    16 MB."""
    token_cache: Choice = Choice.auto
    """Keep token ids on disk, found again by their content; auto does so for streamed data and over 50000 records."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.folds is None) != (self.fold is None):
            lacking = "data.fold" if self.fold is None else "data.folds"
            raise ConfigError("data.folds and data.fold go together", "data", f"set {lacking}=… too")
        if self.folds is not None:
            require(1 <= (self.fold or 0) <= self.folds, "data.fold", f"between 1 and {self.folds}", self.fold)
        self._check_mixture()

    def _check_mixture(self) -> None:
        if not self.mixture:
            if self.mix_size is not None or self.mix_rate_max is not None:
                raise ConfigError(
                    "data.mix_size and data.mix_rate_max have no effect without sources", "data.mixture",
                    "name the sources: data.mixture.NAME.path=…",
                )  # fmt: skip
            return
        if self.path is not None:
            mend = "leave data.path out, or make it a source: data.mixture.NAME.path=…"
            raise ConfigError("data.path and data.mixture both say where records come from", "data", mend)
        if self.columns:
            mend = "name them by source: data.mixture.NAME.columns={…}"
            raise ConfigError("data.columns does not say which source's columns it names", "data.columns", mend)
        if self.dialect is not None:
            mend = "name it by source: data.mixture.NAME.dialect=…"
            raise ConfigError("data.dialect does not say which source's layout it names", "data.dialect", mend)
        for name, source in self.mixture.items():
            key = f"data.mixture.{name}"
            if (source.path is None) == (source.source is None):
                said = "neither path nor source" if source.path is None else "both path and source"
                others = ", ".join(other for other in self.mixture if other != name)
                where = f"the other sources are {others}" if others else ""
                raise ConfigError(f"'{key}' has {said}", where, f"set {key}.path=FILE, and nothing else beside it")
            if self.mixing is Mixing.fixed:
                require(source.rate is not None, f"{key}.rate", "set (mixing=fixed)", source.rate)
            elif source.rate is not None:
                mend = f"set data.mixing=fixed, or leave {key}.rate out"
                raise ConfigError(f"'{key}.rate' has no effect with data.mixing={self.mixing.value}", "", mend)
