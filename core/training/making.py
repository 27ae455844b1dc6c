"""Examples that a rollout engine makes: batch by batch, on the disk as soon as a batch is done, never made twice.

A build lives in `<runs_dir>/.builds/<key>/rows.jsonl`, where the key is a hash of all that its rows depend on. A build
that was interrupted goes on after its last whole batch; a finished one serves every run that asks for the same.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.errors import PluginError
from core.files import disk_guard, write_text
from core.jsonl import append_whole, line_of, read_rows
from core.planning.keys import build_key
from core.planning.ledger import lock_folder
from core.training.run import StageRun

T = TypeVar("T")
Row = dict[str, Any]

ROWS_FILE = "rows.jsonl"
_SAY_EVERY_S = 15.0


def build_rows(
    run: StageRun,
    items: Sequence[T],
    make: Callable[[Sequence[T]], Sequence[Row]],
    settings: Mapping[str, Any],
    batch_size: int,
) -> list[Row]:
    """One row (JSON values) for each item, in order: those on the disk, and `make` of the batches that are missing.

    make: a batch of items to as many rows. What is wrong with one item is a matter of its row; an exception ends the
        run, and the batches that were finished before stay.
    settings: what the rows depend on beside the start, the engine, the judge and the records of the run.
    Batches are the same slices of `items` in every run, so that a build that went on after an interruption has the
    rows of one that was left alone. `reuse=false` makes all anew.
    Raises: ArtifactError when the disk refuses or another process makes the same build; PluginError when `make`
    returns another number of rows.
    """
    key = build_key(run.plan, {**settings, "batch_size": batch_size, "items": len(items)})
    folder = Path(run.cfg.runs_dir) / ".builds" / key
    path = folder / ROWS_FILE
    with disk_guard(folder):
        if not run.cfg.reuse:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        rows = _finished(path, len(items), batch_size)
        if rows:
            run.log.say(f"{len(rows)} of {len(items)} examples are taken from {folder}")
        if len(rows) < len(items):
            _make_missing(run, items, rows, make, path, batch_size)
    return rows


def _make_missing(
    run: StageRun, items: Sequence[T], rows: list[Row], make: Callable[[Sequence[T]], Sequence[Row]], path: Path,
    batch_size: int,
) -> None:  # fmt: skip
    """Append the missing batches to `rows` and to the file, and say how it goes."""
    begun_with, began, said = len(rows), time.monotonic(), time.monotonic()
    with io.FileIO(path, "a") as file:
        while len(rows) < len(items):
            batch = items[len(rows) : len(rows) + batch_size]
            made = list(make(batch))
            if len(made) != len(batch):
                raise PluginError(f"{len(made)} rows were made of {len(batch)} items", run.name)
            append_whole(file, b"".join(line_of(row) for row in made), path)
            with disk_guard(path):
                os.fsync(file.fileno())
            # As they are read back: a row is the same whether it was made in this run or in an earlier one.
            rows += [json.loads(line_of(row)) for row in made]
            now = time.monotonic()
            if now - said >= _SAY_EVERY_S or len(rows) == len(items):
                said = now
                rate = (len(rows) - begun_with) / (now - began)
                run.log.say(f"{run.name}: {len(rows)} of {len(items)} examples made ({rate:.1f} a second)")


def _finished(path: Path, count: int, batch_size: int) -> list[Row]:
    """The rows of the whole batches that are on the disk; what a killed process left of a further one is cut off."""
    rows = list(read_rows(path))
    whole = len(rows) if len(rows) == count else len(rows) - len(rows) % batch_size
    text = b"".join(line_of(row) for row in rows[:whole]).decode()
    if path.is_file() and path.stat().st_size != len(text.encode()):
        write_text(path, text)
    return rows[:whole]


def save_rows(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Write rows as `<folder>/<name>.jsonl`, whole or not at all. Returns the path."""
    path = folder / f"{name}.jsonl"
    write_text(path, b"".join(line_of(row) for row in rows).decode())
    return path
