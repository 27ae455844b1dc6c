"""What every reader of a file format must keep."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, ClassVar

from core.data.formats import formats_of
from core.errors import DataError
from core.platform.registry import Registry
from core.testing.contracts.base import Contract


class ReaderContract(Contract):
    """A reader, on the content of one file."""

    suffix: ClassVar[str] = ""
    content: ClassVar[bytes] = b""
    """A small file of the format without a bad row."""
    rows: ClassVar[list[dict[str, Any]]] = []
    """The values of its rows."""

    def entry(self) -> Any:
        found = Registry.load().readers.get(self.suffix)
        assert found is not None, f"no plugin reads '{self.suffix}'"
        return found

    def read(self, folder: Path, content: bytes, ending: str = "") -> list[Any]:
        """Rows of a file with this content, as a run reads them."""
        file = folder / f"sample{self.suffix}{ending}"
        file.write_bytes(content)
        readers = formats_of(Registry.load()).readers
        assert readers.reads(file)
        return list(readers.rows(file))

    def test_every_row_is_read(self, tmp_path: Path) -> None:
        rows = self.read(tmp_path, self.content)
        assert [row.value for row in rows] == self.rows
        assert not [row.fault for row in rows if row.fault]
        numbers = [row.line for row in rows]
        assert numbers == sorted(set(numbers)) and numbers[0] >= 1, "rows are counted from 1, as people count lines"

    def test_a_compressed_file_reads_the_same(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, gzip.compress(self.content), ".gz") == self.read(tmp_path, self.content)

    def test_bytes_that_are_no_such_file_cost_rows_and_nothing_else(self, tmp_path: Path) -> None:
        """A row with a fault, or a DataError for the whole file."""
        for junk in (b"", b"\x00\xff\xfe\x80junk\n\xff", self.content[: len(self.content) // 2]):
            try:
                self.read(tmp_path, junk)
            except DataError as error:
                assert "fails" not in error.what, error.what
