"""plan.json and result.json come back as they were written, and damage costs no more than what it touches."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.data.info import DatasetInfo, PartInfo, ShownRecord, SourceInfo, TransformReport
from core.planning.plan_record import (
    PLAN_VERSION,
    PlanRecord,
    StageEntry,
    StageOwner,
    StagePreview,
    StepBatch,
    TrainedRow,
)
from core.readback import read_back
from core.results import ChainStep, MetricChange, Retained, StageResult

PART = PartInfo(9, 1, None, None, "alpaca", {"prompt": "q"}, 10, {"n": 3}, {"name": 2}, ["a.jsonl"])
DATA = DatasetInfo(
    PART, PartInfo(2, prompts=2), 3, "7c1e",
    {"a": SourceInfo(12, 10, 0.25, 9, 0.9, 2, PART)}, "fixed",
    [TransformReport("dedup", "dedup", "1", "x 0.1", 12, 9, 3, 0, {"equal": 3},
                     [ShownRecord("a.jsonl", 4, "equal: to line 1", "What")], {"deep": [1, {"b": None}]}, 1)],
)  # fmt: skip
PREVIEW = StagePreview(
    120, StepBatch(8, "records", 900, "8 records, ≈ 900 tokens", 2048), [TrainedRow("[[42]]", 7, 1)],
    3.1, "3.1 GB", "2 min on CPU",
)  # fmt: skip
PLAN = PlanRecord(
    "sft", "", "5d0c", StageOwner("preftune", "0.1", "sft"), "a paper",
    [StageEntry("sft", "", "5d0c", "run", "runs/1")], "tiny", {"policy": "tiny"},
    DATA, "adamw", None, "length", None, PREVIEW, ["mind"],
)  # fmt: skip
RESULT = StageResult(
    "sft", metric="held-out loss", before=2.5, after=2, interval=[1.5, 2.5],
    metrics=[MetricChange("distinct", None, 0.5)], retention=[Retained("general_loss", 1.0, 1.5, 0.5, [0.25, 0.75], 8)],
    pipeline=[ChainStep("sft", "held-out loss", 2.5)],
    heldout_loss_by_source={"a": {"before": None, "after": 1.0}}, facts={"rows": 3},
)  # fmt: skip


@pytest.mark.parametrize("whole", [PLAN, RESULT, PlanRecord(data=DatasetInfo()), StageResult("sft")])
def test_what_is_written_comes_back(whole: PlanRecord | StageResult) -> None:
    told = json.loads(json.dumps(whole.to_json()))
    assert type(whole).from_json(told) == whole
    assert type(whole).from_json({**told, "a name of tomorrow": 1}) == whole


def test_a_plan_without_preview_tells_none() -> None:
    told = PlanRecord().to_json()
    assert told["version"] == PLAN_VERSION
    assert not {"total_steps", "batch", "trained_rows", "memory_gb_estimate"} & told.keys()
    assert "memory_estimate" not in PlanRecord(preview=StagePreview(total_steps=3)).to_json()


def test_damage_costs_what_it_touches() -> None:
    told = json.loads(json.dumps(PLAN.to_json()))
    told["stages"] += [None, {"stage": "rlhf", "key": 7}]
    told["data"]["train"]["records"] = "nine"
    told["data"]["mixture"]["b"] = []
    told["roles"] |= {"reference": "tiny", "value_model": {"from": None}}
    told |= {"owner": [], "batch": 8, "warnings": ["mind", 3], "key": None}
    found = PlanRecord.from_json(told)
    assert found.stages == [*PLAN.stages, StageEntry("rlhf")]
    assert found.data is not None and found.data.train == PartInfo(**{**vars(PART), "records": 0})
    assert found.data.mixture == DATA.mixture and found.data.transforms == DATA.transforms
    assert (found.owner, found.preview.batch, found.key) == (StageOwner(), StepBatch(), "")
    assert (found.roles, found.warnings, found.preview.total_steps) == (PLAN.roles, ["mind"], 120)
    result = StageResult.from_json(
        {"before": True, "after": "2", "items": 1.5, "interval": [1, None], "first": {"a": "b"}}
    )
    assert result == StageResult("", interval=[1], first={})


@dataclass(frozen=True)
class Everything:
    number: float = 0.5
    whole: int = 1
    truth: bool = True
    maybe: str | None = "a"
    anything: Any = None
    by_name: dict[str, list[int]] = field(default_factory=dict)


def test_each_type_takes_its_own_values_alone() -> None:
    values = [None, True, 3, 0.25, "text", [1], {"a": [1, "b"]}]
    taken = {name: [one for one in values if getattr(read_back(Everything, {name: one}), name) == one
                    and one != getattr(Everything(), name)] for name in vars(Everything())}  # fmt: skip
    assert taken["number"] == [3, 0.25] and taken["whole"] == [3] and taken["maybe"] == [None, "text"]
    assert taken["anything"] == values[1:] and read_back(Everything, {"truth": 0}).truth is True
    assert read_back(Everything, {"by_name": {"a": [1, "b"], "c": 1}}).by_name == {"a": [1]}
    for odd in (None, [], "text", 3):
        assert read_back(Everything, odd) == Everything()
