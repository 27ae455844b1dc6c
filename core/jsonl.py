"""The two growing files of a run folder, metrics.jsonl and samples.jsonl: appended, flushed, cut back on resume.

They are written whatever tracker was chosen. Torch-free; tensors and numpy scalars are taken through `.tolist()`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.files import disk_guard

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


def json_value(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities become None, scalars of tensor libraries plain numbers,
    paths and other objects their text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    return json_value(value.tolist()) if hasattr(value, "tolist") else str(value)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a JSON Lines file, in order. A missing file has none; lines that are not one whole JSON object
    (a line torn by a kill) are left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            row = _object(line)
            if row is not None:
                yield row


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class MetricsWriter:
    """Appends to metrics.jsonl and samples.jsonl of `run_dir`; every row is on its way to the disk when a call returns.

    Opening an existing folder continues its files; a last line torn by a kill is cut off first.
    Usable as a context manager. Raises ArtifactError where the disk refuses; no part of the refused row stays.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, io.FileIO] = {}
        self._counts: dict[str, int] = {}

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metrics(self, step: int, metrics: Mapping[str, Any], tokens_seen: int = 0, time_s: float = 0.0) -> None:
        """One row of metrics.jsonl.

        step: optimizer step, 0 before the first; tokens_seen: tokens through the policy so far; time_s: seconds since
        the run's start. NaN and infinities are written as null.
        """
        self._append(METRICS_FILE, {"step": step, "tokens_seen": tokens_seen, "time_s": round(time_s, 4), **metrics})

    def samples(self, when: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of samples.jsonl: `when` is "before", "after" or "step"; a row brings prompt and completion, and where
        they exist index, answer, score and reward. `index` defaults to the place among `rows`."""
        for place, row in enumerate(rows):
            blank = {"index": place, "prompt": "", "completion": "", "answer": None, "score": None, "reward": None}
            self._append(SAMPLES_FILE, {"when": when, "step": step, **blank, **row})

    def counts(self) -> dict[str, int]:
        """Number of rows of each file."""
        for name in (METRICS_FILE, SAMPLES_FILE):
            if name not in self._counts:
                if name not in self._files:
                    with disk_guard(self.run_dir / name):
                        _cut_torn_line(self.run_dir / name)
                self._counts[name] = sum(1 for _ in read_rows(self.run_dir / name))
        return dict(self._counts)

    def truncate_after(self, step: int, counts: Mapping[str, int] | None = None) -> None:
        """Drop the rows of later steps than `step`, and samples taken after training, so that a run resumed from the
        checkpoint of `step` writes each step once. Each file is rewritten beside itself and renamed into place.

        counts: rows that each file had when the checkpoint was made; what came after them is dropped too.
        """
        self.close()
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self.run_dir / name
            if not path.is_file():
                continue
            self._counts.pop(name, None)
            kept = itertools.islice(read_rows(path), (counts or {}).get(name))
            draft = path.with_name(f"{name}.draft")
            with disk_guard(path):
                with draft.open("wb") as file:
                    for row in kept:
                        if _step(row) <= step and row.get("when") != "after":
                            file.write(line_of(row))
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)

    def close(self) -> None:
        """Close the files. Safe to call twice; the next row opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        file = self._files.get(name)
        if file is None:
            with disk_guard(self.run_dir / name):
                _cut_torn_line(self.run_dir / name)
                file = self._files[name] = io.FileIO(self.run_dir / name, "a")
        append_whole(file, line_of(row), self.run_dir / name)
        if name in self._counts:
            self._counts[name] += 1


def append_whole(file: io.FileIO, line: bytes, path: Path) -> None:
    """Append without a buffer that could hold a refused row back and write it later."""
    end = os.fstat(file.fileno()).st_size
    try:
        with disk_guard(path):
            while line:
                line = line[file.write(line) or 0 :]
    except BaseException:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as one line of UTF-8 JSON, see `plain`."""
    text = json.dumps(json_value(row), ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _step(row: Mapping[str, Any]) -> float:
    step = row.get("step")
    return step if isinstance(step, int | float) else 0


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            file.truncate(keep)
