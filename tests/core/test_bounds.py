"""Damaged and hostile files are refused in bounded memory, and a million rows are planned in little."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from core.data.loading import load_records
from core.data.readers import bounds
from core.errors import DataError

GOOD = json.dumps({"prompt": "p", "completion": "c"})
MB = 2**20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that small files reach."""
    import core.data.readers.delimited
    import core.data.readers.json_rows
    import core.data.readers.xml_rows

    for module in (bounds, core.data.readers.json_rows, core.data.readers.delimited):
        monkeypatch.setattr(module, "ROW_BYTES", 2**18)
    for module in (bounds, core.data.readers.xml_rows):
        monkeypatch.setattr(module, "TREE_BYTES", 2**19)
    monkeypatch.setattr(bounds.whole, "__defaults__", (2**18,))


LONG = "x" * (3 * 2**18)
GIANTS = {
    "rows.jsonl": (f"{GOOD}\n{GOOD[:-2]}{LONG}\n{GOOD}\n", 2),
    "first.jsonl": (f"{GOOD[:-2]}{LONG}", 1),
    "list.json": (f'[\n{GOOD},\n{GOOD[:-2]}{LONG}"}}]', 3),
    "numbers.json": (f"[{GOOD},\n{'1' * len(LONG)}", 2),
    "object.json": (f'{{"data": [{GOOD},\n\n{GOOD[:-2]}{LONG}"}}]}}', 3),
    "rows.csv": (f"prompt,completion\na,b\na,{LONG}\n", 3),
    "cell.csv": ('prompt,completion\na,b\na,"' + "line\n" * 2**17 + '"\n', 3),
    "rows.tsv": (f"prompt\tcompletion\na\tb\na\tb\na\t{LONG}\n", 4),
    "rows.txt": (f"a text\n{LONG}\n", 2),
    "book.md": (LONG, 1),
    "tree.xml": (f"<a><b><q>x y</q><r>z</r></b><b><q>{LONG}</q><r>z</r></b></a>", 1),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", GIANTS)
def test_one_giant_line_is_refused_with_its_place(tmp_path: Path, small: None, name: str, packed: bool) -> None:
    text, line = GIANTS[name]
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(DataError) as error:
        load_records([path], max_bad_frac=1)
    assert error.value.where == f"{path}:{line}"
    assert any(word in error.value.what for word in ("longer than", "more than", "broken"))
    assert error.value.mend


def test_a_list_is_read_piece_by_piece(tmp_path: Path, small: None) -> None:
    """More than any limit as a whole, with numbers, escapes and characters at the ends of pieces."""
    rows = [
        {"prompt": "pé" * 50 + str(i), "completion": '☕\\"\n' * (i % 7) + "c", "score": i * 1.5} for i in range(6000)
    ]
    for name, text in (
        ("a.json", json.dumps(rows, indent=1)), ("b.json", json.dumps(rows, ensure_ascii=False)),
        ("c.json", json.dumps({"data": rows})), ("d.json", json.dumps({str(i): row for i, row in enumerate(rows)})),
        ("e.jsonl", json.dumps(rows)),
    ):  # fmt: skip
        assert len(text) > 2 * 2**18
        (tmp_path / name).write_text(text, encoding="utf-8")
        records = load_records([tmp_path / name]).records
        assert [(record.prompt[0].content, record.completion, record.score) for record in records] == [
            (row["prompt"], row["completion"], row["score"]) for row in rows
        ]
    lines = json.dumps(rows, indent=1).split("\n")
    first = load_records([tmp_path / "a.json"]).records
    assert all(lines[record.meta["line"] - 1].strip() == "{" for record in first[::500])


BOMBS = {
    "zeros.jsonl.gz": b"\0" * MB, "blank.jsonl.gz": b"\n" * MB, "list.json.gz": b"[" * MB, "spaces.json.gz": b" " * MB,
    "cells.csv.gz": b"a,b\n" * (MB // 4), "tabs.tsv.gz": b"\n" * MB,
    "deep.xml.gz": b"<a>" * (MB // 3), "quote.csv.gz": b'"\n' * (MB // 2),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.long if "blank" in name or "tsv" in name or "csv" in name else pytest.mark.slow
        )
        for name in BOMBS
    ],
)
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    """2 GB in 2 MB. The process may not take 600 MB."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(BOMBS[name] * 64) * 32)
    done = measured(f"load_records([Path({str(path)!r})], max_bad_frac=1)", limit_mb=600)
    assert done["error"] and str(path) in done["error"], done
    assert done["mb"] < 400 and done["seconds"] < 60


def measured(call: str, limit_mb: int) -> dict[str, float | str]:
    """Peak memory, CPU seconds and error of a call in a process of its own with so much address space.

    The peak is that of the program: getrusage's counts what the process held before, as a copy of this one.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here, which tells the peak memory of a program")
    code = f"""
import json, resource, sys
from pathlib import Path
from core.data.dataset import load_dataset
from core.data.loading import load_records
from core.errors import PreftuneError
from core.settings.data_schema import DataConfig
error = ""
try:
    {call}
except PreftuneError as found:
    error = f"{{found.what}} {{found.where}}"
used = resource.getrusage(resource.RUSAGE_SELF)
peak_kb = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(json.dumps({{"error": error, "mb": peak_kb / 1024, "seconds": used.ru_utime + used.ru_stime}}))
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit_mb * MB, limit_mb * MB))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=limit, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_memory_of_the_process_that_measures_does_not_count() -> None:
    held = b"x" * (500 * MB)
    assert measured("[None]", limit_mb=4000)["mb"] < 400 < len(held) / MB


def test_what_the_measured_process_takes_counts() -> None:
    assert measured("b'x' * (500 * 2**20)", limit_mb=4000)["mb"] > 500


@pytest.mark.slow
def test_a_tenth_of_a_million_rows_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take the way of large files; the memory hardly grows with their number."""
    check_rows(tmp_path, monkeypatch, "jsonl", 240_000)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "jsonl.gz", "parquet", "pairs.jsonl"])
def test_a_million_rows_are_planned_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    check_rows(tmp_path, monkeypatch, kind, 1_000_000)


def check_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"rows.{kind}"
    sides = ("chosen", "rejected") if kind.startswith("pairs") else ("completion", "")
    rows = ((f"Add {i} and {i + 1}, please: what is it?", f"It is {2 * i + 1}.") for i in range(count))
    if kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f'"{prompt}",{said}\n' for prompt, said in rows))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = list(zip(*rows, strict=True))
        pq.write_table(pa.table({"prompt": columns[0], "completion": columns[1]}), path)
    else:
        lines = (
            json.dumps({"prompt": prompt, sides[0]: said, **({sides[1]: "No."} if sides[1] else {})})
            for prompt, said in rows
        )
        with gzip.open(path, "wt") if kind.endswith("gz") else path.open("w") as file:
            text = "[{}]" if kind == "json" else "{}\n"
            file.write(text.format((",\n" if kind == "json" else "\n").join(lines)))
    schema = "preference" if sides[1] else "sft"
    done = measured(f"load_dataset(DataConfig(), Path({str(path)!r}), {schema!r}, 0)", limit_mb=4000)
    assert done["error"] == ""
    assert done["mb"] < 400, done
