"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from core.data.readers.rows import Row
from core.errors import DataError


def read_parquet(file: IO[bytes], path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        mend = "write the file again, texts in UTF-8"
        raise DataError(f"not a readable Parquet file: {error}", f"{path}, after row {number}", mend) from error
