"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from core.data.readers.rows import Row, plain, without_nulls
from core.errors import DataError

_BATCH = 256
"""Rows that are taken apart at once."""


def read_parquet(file: IO[bytes], path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        simple = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating,
                  pa.types.is_boolean)  # fmt: skip
        others = [field.name for field in table.schema_arrow if not any(test(field.type) for test in simple)]
        for batch in table.iter_batches(batch_size=_BATCH):
            for value in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                for name in others:
                    value[name] = without_nulls(plain(value[name]))
                yield Row(number, value)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        mend = "write the file again, texts in UTF-8"
        raise DataError(f"not a readable Parquet file: {error}", f"{path}, after row {number}", mend) from error
