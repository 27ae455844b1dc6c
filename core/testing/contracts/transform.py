"""What every transform of records must keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

from core.data.loading import load_records
from core.data.records import Record
from core.data.transforming import Built, apply_transforms, bind_transforms
from core.platform.named_parts import named_configs
from core.platform.providers import Providers
from core.platform.registry import Registry
from core.testing.contracts.base import ConfiguredContract
from core.testing.tiny import tiny_pairs


class TransformContract(ConfiguredContract):
    """A filter, de-duplication, augmentation or check."""

    transform: ClassVar[str] = ""
    settings: ClassVar[dict[str, Any]] = {}
    records: ClassVar[tuple[Record, ...]] = ()
    """Training records on which it does something; 20 generated ones when empty."""

    def entry(self) -> Any:
        found = Registry.load().transforms.get(self.transform)
        assert found is not None, f"no plugin brings the transform '{self.transform}'"
        return found

    def chosen(self) -> list[str]:
        return ["stage=sft"]

    def typos(self) -> list[str]:
        return [f"data.transforms=[{{name: {self.transform}, no_such_setting: 1}}]"]

    def given(self, folder: Path) -> list[Record]:
        """The records that it is tried on."""
        return list(self.records) or load_records([tiny_pairs(folder / "rows.jsonl", count=20)]).records

    def transformed(self, records: list[Record], seed: int = 0) -> Built:
        """What it makes of the records."""
        registry = Registry.load()
        configs = named_configs([{"name": self.transform, **self.settings}], "data.transforms", registry)
        return apply_transforms(records, [], [], bind_transforms(configs, registry, Providers()), seed)

    def test_it_does_something(self, tmp_path: Path) -> None:
        """Each record stays, or is dropped with a reason; core checks that none is lost or changed."""
        (report,) = self.transformed(self.given(tmp_path)).reports
        assert report.dropped or report.added, "choose records and settings on which it does something"
        assert all(report.reasons), "a reason is empty"

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        """Equal records and an equal seed give equal sets."""
        given = self.given(tmp_path)
        assert self.transformed(given, seed=3).train == self.transformed(given, seed=3).train

    def test_records_are_left_as_they_were(self, tmp_path: Path) -> None:
        """It looks and copies; the records that it was given may stand elsewhere too."""
        given = self.given(tmp_path)
        before = copy.deepcopy(given)
        self.transformed(given)
        assert given == before
