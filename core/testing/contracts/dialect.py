"""What every dialect of rows must keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.data.formats import formats_of
from core.data.loading import Loaded, load_records
from core.platform.registry import Registry
from core.testing.contracts.base import Contract


class DialectContract(Contract):
    """A layout of rows, found among all others."""

    dialect: ClassVar[str] = ""
    row: ClassVar[dict[str, Any]] = {}
    """A row of the layout."""
    record: ClassVar[dict[str, Any]] = {}
    """What it is read as: fields of a record; `prompt` as the text of its last message."""
    bad: ClassVar[dict[str, Any]] = {}
    """A row with the same columns that does not fit, where there is one."""

    def entry(self) -> Any:
        found = Registry.load().dialects.get(self.dialect)
        assert found is not None, f"no plugin brings the dialect '{self.dialect}'"
        return found

    def load(self, folder: Path, rows: list[dict[str, Any]], share: float = 0.0) -> Loaded:
        """The rows of a file, as a run reads them."""
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_records([file], max_bad_frac=share, formats=formats_of(Registry.load()))

    def test_it_is_found_from_the_rows(self, tmp_path: Path) -> None:
        """Without being named, and in the presence of every other."""
        loaded = self.load(tmp_path, [self.row] * 3)
        assert loaded.dialect.name == self.dialect
        assert not loaded.quarantined

    def test_it_reads_what_the_row_says(self, tmp_path: Path) -> None:
        records = self.load(tmp_path, [self.row]).records
        assert records and self.record, "give a row and what it is read as"
        for record in records:
            for name, value in self.record.items():
                found = record.prompt[-1].content if name == "prompt" else getattr(record, name)
                assert found == value, name

    def test_a_row_that_does_not_fit_goes_to_quarantine(self, tmp_path: Path) -> None:
        if not self.bad:
            pytest.skip("every row with these columns fits")
        loaded = self.load(tmp_path, [self.row] * 3 + [self.bad], share=0.5)
        assert len(loaded.records) == 3 * len(self.load(tmp_path, [self.row]).records)
        assert [row.line for row in loaded.quarantined] == [4] and loaded.quarantined[0].reason
