"""What plan, report and studies are told of a data set. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


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
    extra_columns: Any = None
    """Columns that no field stands for; by file where the files differ."""
    files: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The part of plan.json."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class DatasetInfo:
    """A data set as the plan shows it."""

    train: PartInfo
    heldout: PartInfo
    quarantined: int
    """Rows that became no record."""
    fingerprint: str = ""
    """Hash of all records, in hex."""
    mixture: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Of each source of a mixture what it has and gives; see core.data.mixing.mixed."""
    mixing: str = ""
    """How the shares of the sources were found."""
    transforms: list[dict[str, Any]] = field(default_factory=list)
    """What each transform did; see core.data.transforms."""

    def to_json(self, quarantined: int | None = None) -> dict[str, Any]:
        """The part of plan.json. quarantined: rows in quarantine by now, where there are more."""
        mixed = {"mixture": dict(self.mixture), "mixing": self.mixing} if self.mixture else {}
        return {
            "train": self.train.to_json(),
            "heldout": self.heldout.to_json(),
            "quarantined": self.quarantined if quarantined is None else quarantined,
            "fingerprint": self.fingerprint,
            **mixed,
            **({"transforms": self.transforms} if self.transforms else {}),
        }

    def short(self) -> dict[str, Any]:
        """The part of result.json."""
        return {
            "records": self.train.records,
            "heldout": self.heldout.records,
            "fingerprint": self.fingerprint,
            "sources": {name: source["records"] for name, source in self.mixture.items()},
            "transforms": [
                {key: step[key] for key in ("name", "version", "kept", "dropped", "added")} for step in self.transforms
            ],
        }
