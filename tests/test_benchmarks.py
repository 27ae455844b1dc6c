"""The harness of the benchmarks runs, and its contenders do the same work. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.build_speed import LOOP, build_table
from benchmarks.race import Result, heats
from benchmarks.report import summarise, table
from benchmarks.rows import generate
from benchmarks.tasks import TASKS
from core.testing.tiny import tiny_model


def test_generated_rows_are_the_same_each_time() -> None:
    assert generate("dpo", 3) == generate("dpo", 3)
    assert {"prompt", "chosen", "rejected"} == set(generate("dpo", 1)[0])


def test_ratios_are_taken_within_rounds() -> None:
    def result(place: int, seconds: list[float]) -> Result:
        steps = [
            [{"seconds": s, "cpu_seconds": s, "tokens": 100, "loss": 1.0, "peak_gb": 1.0, "idle_gb": 1.0}]
            for s in seconds
        ]
        start = {"seconds": 1.0, "baseline_gb": 0.1, "threads": 1}
        return Result(TASKS["sft"].contenders[place], 0, start, {"loss": 1.0}, steps)

    summary = summarise([result(0, [1.0, 10.0, 1.0]), result(1, [2.0, 20.0, 3.0])])
    assert summary[1]["times_ours"] == pytest.approx([2.0, 2.0, 3.0])
    assert summary[1]["times_ours_overall"] == pytest.approx(25 / 12)
    assert "trl default" in table(summary)


def test_every_heat_holds_the_reference() -> None:
    contenders = list(TASKS["rloo"].contenders)
    fields = heats(contenders, 3)
    assert all(field[0] is contenders[0] and len(field) <= 3 for field in fields)
    assert {item.name for field in fields for item in field} == {item.name for item in contenders}
    assert heats(contenders[:1], 3) == [contenders[:1]]


def test_a_contender_that_failed_is_told_and_not_counted() -> None:
    summary = summarise([Result(TASKS["sft"].contenders[0], error="exit code 1")])
    assert "failed: exit code 1" in table(summary)


def test_builders_are_compared_with_the_loop() -> None:
    pace = {"least": 1.0, "most": 9.0, "peak_gb": 1.0}
    rows = [{"name": "vllm", "items_per_s": 6.0, **pace}, {"name": LOOP, "items_per_s": 1.5, **pace}]
    assert "| vllm | 6.00 | 1.00–9.00 | 4.0 | 1.00 |" in build_table(rows)
    assert "| vllm | 6.00 | 1.00–9.00 | – | 1.00 |" in build_table(rows[:1])


@pytest.mark.slow
def test_sft_on_the_tiny_model(tmp_path: Path) -> None:
    """preftune and TRL's defaults see the same rows: the loss before any update agrees."""
    out = tmp_path / "bench.json"
    model = tiny_model(tmp_path / "model")
    main(["sft", "--model", str(model), "--rounds", "2", "--only", "preftune", "--only", "default", "--json", str(out)])
    ours, theirs = json.loads(out.read_text())["benchmarks"]["sft"]["contenders"]
    assert not ours["error"] and not theirs["error"]
    assert len(ours["rounds"]) == len(theirs["rounds"]) == 2
    assert [turn[0]["tokens"] for turn in ours["rounds"]] == [turn[0]["tokens"] for turn in theirs["rounds"]]
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=1e-3)
    assert ours["peak_gb"] > ours["imports_gb"] > 0
