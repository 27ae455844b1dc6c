"""What plan, report and studies are told of a data set. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.readback import read_back


@dataclass(frozen=True)
class PartInfo:
    """The training or the held-out part of a data set; what is None does not apply."""

    records: int = 0
    unfit: int | None = None
    """Records that do not serve the stage's schema."""
    also_heldout: int | None = None
    """Training records left out because their prompt is held out."""
    prompts: int | None = None
    """Held-out prompts to generate for."""
    dialect: str | None = None
    """Name of the layout of the rows; several, with commas, where the files differ."""
    mapping: Mapping[str, Any] | None = None
    """Field to column; by file where the files differ."""
    rows: int | None = None
    """Rows that became records."""
    extra_columns: Mapping[str, Any] | None = None
    """Column that nobody reads, to the rows in which it says something."""
    extra_keys: Mapping[str, Any] | None = None
    """Key of messages that nobody reads, to the messages in which it says something."""
    files: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The part of plan.json."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: object) -> PartInfo:
        """Counterpart of `to_json`; see core.readback of what does not fit."""
        return read_back(cls, values)


@dataclass(frozen=True)
class SourceInfo:
    """A source of a mixture: what it has, what it gives, and how it was read."""

    available: int = 0
    """Training records that it has."""
    capped: int = 0
    """Those that its cap leaves."""
    weight: float = 0.0
    """Its share of the mixture, 0..1."""
    records: int = 0
    """Training records drawn of it."""
    passes: float = 0.0
    """How many times each of `capped` is drawn."""
    heldout: int = 0
    """Held-out records out of it."""
    part: PartInfo = field(default_factory=PartInfo)
    """The source as it was loaded. Its number of records is not in the file, where `records` are those drawn."""

    def to_json(self) -> dict[str, Any]:
        """An entry of `mixture`: its own numbers first; `records` are those drawn."""
        own = {name: value for name, value in vars(self).items() if name != "part"}
        return own | {name: value for name, value in self.part.to_json().items() if name != "records"}

    @classmethod
    def from_json(cls, values: object) -> SourceInfo:
        """Counterpart of `to_json`; see core.readback of what does not fit."""
        return read_back(cls, {**values, "part": values} if isinstance(values, Mapping) else values)


@dataclass(frozen=True)
class ShownRecord:
    """A record that a transform dropped or added, as an example."""

    file: str = ""
    line: int = 0
    reason: str = ""
    """Why it was dropped, or `added`."""
    text: str = ""
    """Its first characters."""


@dataclass(frozen=True)
class TransformReport:
    """What a transform did. Numbers are of training records but for `heldout_dropped`."""

    name: str = ""
    kind: str = ""
    version: str = ""
    owner: str = ""
    """Distribution and version that it came from, else the plugin."""
    before: int = 0
    kept: int = 0
    dropped: int = 0
    added: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Kind of reason to dropped records, the most frequent first."""
    examples: list[ShownRecord] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the transform tells of itself, as JSON values."""
    heldout_dropped: int = 0
    """Held-out records that were drawn from the same rows and judged alike."""

    def to_json(self) -> dict[str, Any]:
        """An entry of `transforms`."""
        return {**vars(self), "examples": [dict(vars(one)) for one in self.examples]}

    def short(self) -> dict[str, Any]:
        """The entry of result.json."""
        return {
            "name": self.name,
            "version": self.version,
            "kept": self.kept,
            "dropped": self.dropped,
            "added": self.added,
        }


@dataclass(frozen=True)
class DatasetInfo:
    """A data set as the plan shows it."""

    train: PartInfo = field(default_factory=PartInfo)
    heldout: PartInfo = field(default_factory=PartInfo)
    quarantined: int = 0
    """Rows that became no record."""
    fingerprint: str = ""
    """Hash of all records, in hex."""
    mixture: Mapping[str, SourceInfo] = field(default_factory=dict)
    """The sources of a mixture by name."""
    mixing: str = ""
    """How the shares of the sources were found."""
    transforms: list[TransformReport] = field(default_factory=list)
    """What each transform did, in order."""

    def to_json(self) -> dict[str, Any]:
        """The part of plan.json."""
        sources = {name: source.to_json() for name, source in self.mixture.items()}
        steps = [step.to_json() for step in self.transforms]
        return {
            "train": self.train.to_json(),
            "heldout": self.heldout.to_json(),
            "quarantined": self.quarantined,
            "fingerprint": self.fingerprint,
            **({"mixture": sources, "mixing": self.mixing} if sources else {}),
            **({"transforms": steps} if steps else {}),
        }

    @classmethod
    def from_json(cls, values: object) -> DatasetInfo:
        """Counterpart of `to_json`; see core.readback of what does not fit."""
        return read_back(cls, values)

    def short(self) -> dict[str, Any]:
        """The part of result.json."""
        return {
            "records": self.train.records,
            "heldout": self.heldout.records,
            "fingerprint": self.fingerprint,
            "sources": {name: source.records for name, source in self.mixture.items()},
            "transforms": [step.short() for step in self.transforms],
        }
