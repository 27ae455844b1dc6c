"""Records and folders that were changed after they were written are told from those that were not."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.planning.ledger import Ledger, artifact_fault
from core.proof import checksums, folder_fault, read_record, write_record

KEY = "0123456789abcdef01234567"


def finished_run(runs: Path) -> Path:
    """A run folder as a finished stage leaves it, in the index; its files are made up."""
    ledger = Ledger(runs)
    folder = ledger.open_folder("sft")
    artifact = folder / "artifact"
    (artifact / "merged").mkdir(parents=True)
    draw = random.Random(0)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "merged/model.safetensors"):
        (artifact / name).write_bytes(draw.randbytes(500))
    record = {"version": 2, "key": KEY, "files": checksums(artifact), "verification": {"ok": True, "checks": []}}
    write_record(folder / "artifact.json", record)
    write_record(folder / "result.json", {"version": 2, "stage": "sft", "before": 2.5, "first": {"a": float("nan")}})
    ledger.enter(KEY, folder)
    return folder


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _some(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in (folder / "artifact").rglob("*") if path.is_file()))


def _add(folder: Path, draw: random.Random) -> None:
    name = draw.choice(["pytorch_model.bin", "modeling.py", ".hidden", "merged/added.jinja", "new/vocab.txt"])
    path = folder / "artifact" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(draw.randbytes(draw.randrange(3)))


def _swap(folder: Path, draw: random.Random) -> None:
    one, other = folder / "artifact" / "model.safetensors", folder / "artifact" / "merged" / "model.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _field(folder: Path, draw: random.Random) -> None:
    """Another value, or none, in a record."""
    path = folder / draw.choice(["artifact.json", "result.json"])
    record = json.loads(path.read_text())
    name = draw.choice(sorted(record))
    record[name] = draw.choice([None, [], {}, "x", 7, True, {"a": []}])
    if draw.random() < 0.3:
        del record[name]
    path.write_text(json.dumps(record))


def _replaced(folder: Path, draw: random.Random) -> None:
    """A directory, a dead link or a pipe in the place of a file."""
    path = _some(folder, draw)
    path.unlink()
    draw.choice([path.mkdir, lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)])()


CHANGES: dict[str, Callable[[Path, random.Random], Any]] = {
    "flipped": lambda folder, draw: _flip(_some(folder, draw), draw),
    "cut": lambda folder, draw: os.truncate(_some(folder, draw), draw.randrange(500)),
    "longer": lambda folder, draw: _some(folder, draw).open("ab").write(b"\n"),
    "removed": lambda folder, draw: _some(folder, draw).unlink(),
    "renamed": lambda folder, draw: (one := _some(folder, draw)).rename(one.with_suffix(".old")),
    "added": _add,
    "swapped": _swap,
    "replaced": _replaced,
    "link to a folder": lambda folder, draw: (folder / "artifact" / "more").symlink_to(folder),
    "field of a record": _field,
    "no folder": lambda folder, draw: shutil.rmtree(folder / "artifact"),
}


def test_no_change_of_an_artifact_is_accepted(tmp_path: Path) -> None:
    """110 changes, each of a whole run."""
    accepted = []
    for number in range(110):
        kind = list(CHANGES)[number % len(CHANGES)]
        runs = tmp_path / str(number)
        folder = finished_run(runs)
        assert Ledger(runs).lookup(KEY) == ("reuse", folder, "")
        CHANGES[kind](folder, random.Random(number))
        found = Ledger(runs).lookup(KEY)
        if found.state == "reuse" or str(folder) not in found.note:
            accepted.append((number, kind, found))
        if kind != "field of a record" and artifact_fault(folder) is None:
            accepted.append((number, kind, "as a parent"))
    assert accepted == []


def test_an_artifact_of_another_key_is_not_reused(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    Ledger(tmp_path).enter("other", folder)
    found = Ledger(tmp_path).lookup("other")
    assert found.state == "run" and "belongs to another run" in found.note


@pytest.mark.parametrize("text", ["", "{]", "[]", "null", "3", '"text"', "[" * 100_000, '{"version": 2}', "{}"])
@pytest.mark.parametrize("name", ["artifact.json", "result.json"])
def test_a_damaged_record_is_told_and_no_traceback(tmp_path: Path, name: str, text: str) -> None:
    folder = finished_run(tmp_path)
    (folder / name).write_text(text)
    found = Ledger(tmp_path).lookup(KEY)
    assert found.state == "run" and f"{folder} is not reused: {name}" in found.note
    (folder / name).write_bytes(b"\xff\xfe\x00")
    assert "is not reused" in Ledger(tmp_path).lookup(KEY).note


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", {"version": 2, "text": "é", "numbers": (1, 2.5), "by": {3: None}})
    assert read_record(tmp_path / "a.json", 2) == {"version": 2, "text": "é", "numbers": [1, 2.5], "by": {"3": None}}


def test_a_record_of_an_older_version_needs_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": 1, "key": "k"}')
    assert read_record(tmp_path / "a.json", 2)["key"] == "k"
    (tmp_path / "a.json").write_text('{"version": 1, "key": "k", "checksum": "0"}')
    with pytest.raises(ValueError, match="was altered"):
        read_record(tmp_path / "a.json", 2)


@pytest.mark.parametrize("known", [None, [], {}, "x", 3, {"a": 7}, {7: "a"}])
def test_a_folder_is_not_whole_by_knowing_nothing(tmp_path: Path, known: object) -> None:
    (tmp_path / "a").write_text("a")
    assert folder_fault(tmp_path, known)
