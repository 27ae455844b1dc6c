"""A built-in stage written again by a stranger, out of the public names alone, is the same stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.testing.run import StageRunner, assert_same_weights

OUTSIDE = Path(__file__).parent / "outside"
WORDS = (
    "stage.max_steps=5", "stage.batch_size=8", "stage.lr=1e-3", "stage.micro_batch_tokens=120", "eval.max_items=0",
)  # fmt: skip


def test_it_imports_public_names_alone():
    files = list(OUTSIDE.glob("*.py"))
    assert len(files) == 2
    for file in files:
        imports = [line.split() for line in file.read_text().splitlines() if line.startswith(("from", "import"))]
        assert {words[1] for words in imports if words[1].startswith("core")} <= {"core.api", "core.torch_api"}


def test_losses_and_weights_are_identical(stage_runner: StageRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("PREFTUNE_PLUGINS", "outside_dpo")
    ours = stage_runner("stage=rlhf", "algorithm=dpo", *WORDS).assert_ok()
    theirs = stage_runner("stage=outside", *WORDS).assert_ok()
    for name in ("loss", "margin", "grad_norm", "lr"):
        assert [step[name] for step in theirs.steps] == [step[name] for step in ours.steps], name
    assert len(ours.steps) == 5 and ours.steps[-1]["loss"] < ours.steps[0]["loss"]
    assert_same_weights(ours.artifact, theirs.artifact)
    assert "sft" not in theirs.result["time_by_plugin"] and theirs.result["time_by_plugin"]["outside_dpo"] > 0
