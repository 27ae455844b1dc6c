"""Rows of a build on the disk: no damage of the file gives a row to another item, and none goes unsaid."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

import core.training.making
from core.training.row_file import RowFile

Outcome: TypeAlias = "tuple[list[Any], list[str], list[int]]"
COUNT, SIZE = 22, 4
EXPECTED = [{"item": f"item {i}", "score": i / 7, "text": f"line\n{i} \ud800é"} for i in range(COUNT)]


def _flipped(lines: list[bytes], draw: random.Random) -> None:
    number = draw.randrange(COUNT)
    line = bytearray(lines[number])
    line[draw.randrange(len(line))] ^= 1 << draw.randrange(8)
    lines[number] = bytes(line)


def _swapped(lines: list[bytes], draw: random.Random) -> None:
    one, other = draw.sample(range(COUNT), 2)
    lines[one], lines[other] = lines[other], lines[one]


def _cut(lines: list[bytes], draw: random.Random) -> None:
    number = draw.randrange(COUNT - 1)
    lines[number] = lines[number][: draw.randrange(len(lines[number]))] + b"\n"


def _joined(lines: list[bytes], draw: random.Random) -> None:
    number = draw.randrange(COUNT - 1)
    lines[number] = lines[number].rstrip(b"\n")


def _edited(lines: list[bytes], draw: random.Random, name: str, value: Any) -> None:
    number = draw.randrange(COUNT)
    edited = {**json.loads(lines[number]), name: value}
    if edited == json.loads(lines[number]):
        edited[name] = -1
    lines[number] = json.dumps(edited).encode() + b"\n"


ALTERED: dict[str, Callable[[list[bytes], random.Random], Any]] = {
    "flipped": _flipped,
    "deleted": lambda lines, draw: lines.pop(draw.randrange(COUNT - 1)),
    "doubled": lambda lines, draw: lines.insert(draw.randrange(COUNT), draw.choice(lines)),
    "swapped": _swapped,
    "cut": _cut,
    "joined": _joined,
    "blank": lambda lines, draw: lines.insert(draw.randrange(COUNT), b"\n"),
    "foreign": lambda lines, draw: lines.insert(draw.randrange(COUNT), b'{"place": 3, "row": {}}\n'),
    "other place": lambda lines, draw: _edited(lines, draw, "place", draw.randrange(-3, COUNT + 3)),
    "other row": lambda lines, draw: _edited(lines, draw, "row", {"item": "x"}),
    "wrong type": lambda lines, draw: _edited(lines, draw, "row", draw.choice([None, 3, [], "x", True])),
}


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.warn = self.lines.append


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`build_rows` of 22 items in batches of 4: its rows, its lines, and the items that had to be made."""
    monkeypatch.setattr(core.training.making, "build_key", lambda plan, settings: "key")

    def run(
        folder: Path = tmp_path, reuse: bool = True, fail_at: int = COUNT
    ) -> tuple[list[Any], list[str], list[int]]:
        made: list[int] = []

        def make(batch: Sequence[int]) -> list[dict[str, Any]]:
            if fail_at in batch:
                raise KeyboardInterrupt
            made.extend(batch)
            return [EXPECTED[item] for item in batch]

        log = Log()
        cfg = SimpleNamespace(runs_dir=folder, reuse=reuse)
        stage: Any = SimpleNamespace(plan=None, cfg=cfg, log=log, name="s3ft")
        try:
            rows = core.training.making.build_rows(stage, range(COUNT), make, {}, SIZE)
        except KeyboardInterrupt:
            rows = []
        return rows, log.lines, made

    return run


def _file(folder: Path) -> Path:
    return folder / ".builds" / "key" / "rows.jsonl"


def test_rows_come_back_and_are_made_once(build, tmp_path: Path) -> None:
    rows, _, made = build()
    assert rows == EXPECTED and made == [*range(22)]
    rows, lines, made = build()
    assert rows == EXPECTED and made == [] and lines == [f"22 of 22 examples are taken from {_file(tmp_path).parent}"]
    assert build(reuse=False)[2] == [*range(22)]


def test_an_interrupted_build_goes_on(build, tmp_path: Path) -> None:
    build(fail_at=9)
    with _file(tmp_path).open("ab") as file:
        file.write(b'{"place": 8, "ro')  # what a kill leaves
    rows, lines, made = build()
    assert rows == EXPECTED and made == [*range(8, 22)]
    assert not any("damaged" in line for line in lines)


def test_a_build_that_is_mended_is_in_order_again(build, tmp_path: Path) -> None:
    build()
    whole = _file(tmp_path).read_bytes()
    lines = whole.splitlines(keepends=True)
    _file(tmp_path).write_bytes(b"".join(lines[:5] + lines[6:]))
    rows, said, made = build()
    assert rows == EXPECTED and made == [4, 5, 6, 7] and "is damaged" in said[0]
    assert _file(tmp_path).read_bytes() == whole and not any("damaged" in line for line in build()[1])


def _unsaid(build: Any, folder: Path, numbers: range) -> list[tuple[int, str, str]]:
    """Changes of a finished build's file that gave other rows, or that nobody was told of."""
    build(folder)
    whole = _file(folder).read_bytes()
    wrong = []
    for number in numbers:
        kind, draw = list(ALTERED)[number % len(ALTERED)], random.Random(number)
        lines = whole.splitlines(keepends=True)
        ALTERED[kind](lines, draw)
        altered = b"".join(lines)
        _file(folder).write_bytes(altered)
        rows, said, _ = build(folder)
        if rows != EXPECTED:
            wrong.append((number, kind, "other rows"))
        if altered != whole and not any("is damaged" in line for line in said) and altered != whole[:-1]:
            wrong.append((number, kind, "unsaid"))
        if _file(folder).read_bytes() != whole:
            wrong.append((number, kind, "not mended"))
    return wrong


def test_no_damage_is_silent(build, tmp_path: Path) -> None:
    """220 changes of the file, the kinds in turn."""
    assert _unsaid(build, tmp_path, range(220)) == []


def test_lines_of_another_build_are_not_taken(tmp_path: Path) -> None:
    one = RowFile(tmp_path / "rows.jsonl", "one", 4, 2)
    one.add(0, [{"a": 1}, {"a": 2}])
    assert RowFile(tmp_path / "rows.jsonl", "one", 4, 2).rows() == [{"a": 1}, {"a": 2}]
    other = RowFile(tmp_path / "rows.jsonl", "other", 4, 2)
    assert other.rows() == [] and other.damaged
