"""What every metric must keep."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import ConfiguredContract
from core.testing.run import Outcome, StageRunner


class MetricContract(ConfiguredContract):
    """A metric, in a short run of a stage."""

    metric: ClassVar[str] = ""
    settings: ClassVar[str] = ""
    """Its settings as they are typed, e.g. `n: 3`."""
    stage: ClassVar[str] = "sft"

    def entry(self) -> Any:
        found = Registry.load().metrics.get(self.metric)
        assert found is not None, f"no plugin brings the metric '{self.metric}'"
        return found

    def chosen(self) -> list[str]:
        more = f", {self.settings}" if self.settings else ""
        return [f"stage={self.stage}", f"eval.metrics=[{{name: {self.metric}{more}}}]"]

    def typos(self) -> list[str]:
        return [f"eval.metrics=[{{name: {self.metric}, no_such_setting: 1}}]"]

    @pytest.fixture(scope="class")
    @classmethod
    def measured(cls, stage_runner: StageRunner) -> Outcome:
        """Two steps, evaluated before and after."""
        kit = cls()
        return stage_runner(*kit.chosen(), "stage.max_steps=2", "stage.batch_size=4", *kit.words).assert_ok()

    def test_it_is_in_metrics_and_result_and_report(self, measured: Outcome) -> None:
        """Before and after, each a number, under its own name."""
        rows = measured.result["metrics"]
        assert rows and {row["name"].partition("/")[0] for row in rows} == {self.metric}
        for row in rows:
            assert isinstance(row["before"], float) and isinstance(row["after"], float), row
            told = [line[f"eval/{row['name']}"] for line in measured.metrics if f"eval/{row['name']}" in line]
            assert told == [row["before"], row["after"]]
            assert row["name"] in (measured.folder / "report.html").read_text(encoding="utf-8")
        assert self.entry().owner.plugin in measured.result["time_by_plugin"]

    def test_training_is_the_same_without_it(self, measured: Outcome, stage_runner: StageRunner) -> None:
        """A metric looks and changes nothing."""
        words = (f"stage={self.stage}", "stage.max_steps=2", "stage.batch_size=4", *self.words)
        alone = stage_runner(*words).assert_ok()
        assert [row["loss"] for row in alone.steps] == [row["loss"] for row in measured.steps]
