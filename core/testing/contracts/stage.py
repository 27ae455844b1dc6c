"""What every stage must keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import TrainingContract
from core.testing.run import Lab, Outcome, read_json


class StageContract(TrainingContract):
    """A stage, or one algorithm of it: at most four short runs."""

    stage: ClassVar[str] = ""
    algorithm: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names, without the stage's prefix, that each step must report beside the loop's own."""
    role: ClassVar[str] = "policy"

    def entry(self) -> Any:
        found = Registry.load().stages.get((self.stage, self.algorithm))
        assert found is not None, f"no plugin brings the stage '{self.stage}' '{self.algorithm}'"
        return found

    def chosen(self) -> list[str]:
        return [f"stage={self.stage}", *([f"algorithm={self.algorithm}"] if self.algorithm else [])]

    def prefix(self) -> str:
        return "stage"

    def test_its_steps_are_made(self, straight: Outcome) -> None:
        assert straight.result["steps"] == len(straight.steps) == 6

    def test_metrics_are_named_and_finite(self, straight: Outcome) -> None:
        """Training metrics carry the stage's name, held-out ones `eval`."""
        names = {name for row in straight.metrics for name in row if "/" in name}
        assert {name.partition("/")[0] for name in names} <= {self.stage, "eval"}
        for row in straight.steps:
            assert {"loss", "lr", "grad_norm", *self.metrics} <= set(row)
            assert all(math.isfinite(value) for value in row.values()), row

    def test_the_artifact_is_complete(self, straight: Outcome) -> None:
        """Weights, tokenizer, card, hashes, lineage, a passed verification, a report."""
        record = read_json(straight.folder / "artifact.json")
        assert record["verification"]["ok"] and record["key"] and record["files"]
        names = {path.name for path in straight.artifact.iterdir()}
        assert {"tokenizer.json", "README.md"} <= names and any(name.endswith(".safetensors") for name in names)
        for name in ("plan.json", "config.json", "config.yaml", "result.json", "report.html", "report.md"):
            assert (straight.folder / name).stat().st_size > 0, name
        assert read_json(straight.folder / "plan.json")["owner"]["plugin"] == self.entry().owner.plugin

    def test_masked_tokens_do_not_matter(self, preftune_lab: Lab, tmp_path: Path) -> None:
        """The loss is the same whether examples stand in one packed row, where the attention mask hides each from the
        others, or each in a row of its own."""
        from core.testing.bench import Bench

        found = []
        for tokens in (100_000, 1):
            arguments = [
                *preftune_lab.words(tmp_path / "runs"), f"pipeline.stages=[{self.stage}]", *self.trained(),
                f"stage.micro_batch_tokens={tokens}",
            ]  # fmt: skip
            bench = Bench(arguments, tmp_path / f"bench-{tokens}")
            try:
                found.append(bench.losses())
            finally:
                bench.close()
        (together, few), (apart, many) = found
        assert many > few, "micro_batch_tokens did not cut the batch; use it in collect_batch"
        assert together == pytest.approx(apart, abs=2e-5, rel=2e-5)
