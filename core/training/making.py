"""Examples that a rollout engine makes: batch by batch, on the disk as soon as a batch is done, never made twice.

A build lives in `<runs_dir>/.builds/<key>/rows.jsonl`, where the key is a hash of all that its rows depend on. A build
that was interrupted goes on with the first batch that is missing; a finished one serves every run that asks for the
same. Rows that were damaged on the disk are told, and their batches made anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.errors import PluginError
from core.files import disk_guard, write_text
from core.jsonl import line_of
from core.planning.keys import build_key
from core.planning.ledger import lock_folder
from core.training.row_file import Row, RowFile
from core.training.run import StageRun

T = TypeVar("T")

ROWS_FILE = "rows.jsonl"
LINES_VERSION = 2
"""Raised when a line of that file changes its form."""
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
    key = build_key(run.plan, {**settings, "batch_size": batch_size, "items": len(items), "lines": LINES_VERSION})
    folder = Path(run.cfg.runs_dir) / ".builds" / key
    with disk_guard(folder):
        if not run.cfg.reuse:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        built = RowFile(folder / ROWS_FILE, key, len(items), batch_size)
        if built.damaged:
            run.log.warn(f"{folder / ROWS_FILE} is damaged: rows that are not what was written are made anew")
        if built.batches:
            run.log.say(f"{len(built.rows())} of {len(items)} examples are taken from {folder}")
        _make_missing(run, items, built, make, batch_size)
        return built.rows()


def _make_missing(
    run: StageRun, items: Sequence[T], built: RowFile, make: Callable[[Sequence[T]], Sequence[Row]], batch_size: int
) -> None:
    """Make the batches that are missing, and say how it goes."""
    begun_with, began, said = len(built.rows()), time.monotonic(), time.monotonic()
    done = begun_with
    for start in built.missing():
        batch = items[start : start + batch_size]
        made = list(make(batch))
        if len(made) != len(batch):
            raise PluginError(f"{len(made)} rows were made of {len(batch)} items", run.name)
        built.add(start, made)
        done += len(made)
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S or done == len(items):
            said = now
            rate = (done - begun_with) / (now - began)
            run.log.say(f"{run.name}: {done} of {len(items)} examples made ({rate:.1f} a second)")
    built.put_in_order()


def save_rows(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Write rows as `<folder>/<name>.jsonl`, whole or not at all. Returns the path."""
    path = folder / f"{name}.jsonl"
    write_text(path, b"".join(line_of(row) for row in rows).decode())
    return path
