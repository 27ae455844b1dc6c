"""metrics.jsonl and samples.jsonl: appended, strict JSON, cut back on resume, healed after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest

from core.jsonl import MetricsWriter, json_value, read_rows


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_rows_are_on_the_disk_at_once_and_strict(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run")
    writer.metrics(1, {"sft/loss": math.nan, "sft/norm": math.inf, "sft/lr": 2e-5}, tokens_seen=7, time_s=1.23456)
    (line,) = lines(tmp_path / "run" / "metrics.jsonl")
    row = json.loads(line, parse_constant=pytest.fail)
    assert row == {
        "step": 1, "tokens_seen": 7, "time_s": 1.2346, "sft/loss": None, "sft/norm": None, "sft/lr": 2e-5}  # fmt: skip
    writer.samples("before", 0, [{"prompt": "é\n\u2028", "completion": "c", "score": 1.0}, {"prompt": "q", "index": 9}])
    rows = list(read_rows(tmp_path / "run" / "samples.jsonl"))
    assert [row["index"] for row in rows] == [0, 9]
    assert rows[0]["prompt"] == "é\n\u2028" and rows[0]["when"] == "before" and rows[0]["answer"] is None
    writer.close()
    writer.close()
    writer.metrics(2, {})
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2


def test_scalars_of_libraries_become_numbers() -> None:
    values = {"a": numpy.float32(0.5), "b": numpy.array([1, 2]), "c": Path("x"), "d": (True, numpy.nan), 3: None}
    assert json_value(values) == {"a": 0.5, "b": [1, 2], "c": "x", "d": [True, None], "3": None}


def test_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.samples("before", 0, [{"prompt": "\ud83d", "completion": ""}])
        writer.truncate_after(1)
    (row,) = read_rows(tmp_path / "samples.jsonl")
    assert row["prompt"] == "\ud83d"


def test_truncate_drops_later_rows_and_the_writer_goes_on(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.samples("before", 0, [{"prompt": "p", "completion": "b"}])
        for step in range(1, 8):
            writer.metrics(step, {"sft/loss": float(step)})
        writer.metrics(7, {"eval/score": 0.5})
        writer.samples("step", 3, [{"prompt": "p", "completion": "s"}])
        writer.samples("step", 6, [{"prompt": "p", "completion": "s"}])
        writer.samples("after", 4, [{"prompt": "p", "completion": "a"}])
        writer.truncate_after(4)
        writer.metrics(5, {"sft/loss": 50.0})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [(row["when"], row["step"]) for row in read_rows(tmp_path / "samples.jsonl")] == [("before", 0), ("step", 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]
    MetricsWriter(tmp_path / "new").truncate_after(0)  # nothing written yet


@pytest.mark.parametrize("torn", ['{"step": 3, "sft/lo', '{"step": 3, "sft/loss": "' + "x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path) as writer:
        writer.metrics(1, {"sft/loss": 1.0})
        writer.metrics(2, {"sft/loss": 2.0})
    with path.open("a") as file:
        file.write(torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    with MetricsWriter(tmp_path) as writer:
        writer.metrics(3, {"sft/loss": 3.0})
    assert [json.loads(line)["step"] for line in lines(path)] == [1, 2, 3]


def test_a_file_of_one_torn_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    with MetricsWriter(tmp_path) as writer:
        writer.metrics(1, {})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
