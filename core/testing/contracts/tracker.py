"""What every tracker must keep."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import ConfiguredContract
from core.testing.run import Outcome, StageRunner


class TrackerContract(ConfiguredContract):
    """A tracker, in a short run that is interrupted and resumed."""

    tracker: ClassVar[str] = ""
    writes: ClassVar[str] = ""
    """Pattern of the files that it leaves in the run folder; empty where it leaves none."""

    def entry(self) -> Any:
        found = Registry.load().trackers.get(self.tracker)
        assert found is not None, f"no plugin brings the tracker '{self.tracker}'"
        return found

    def chosen(self) -> list[str]:
        return ["stage=sft", f"tracker={self.tracker}"]

    def prefix(self) -> str:
        return "tracker"

    @pytest.fixture(scope="class")
    @classmethod
    def tracked(cls, stage_runner: StageRunner) -> Outcome:
        """A run of four steps, interrupted after the second one and started again."""
        kit = cls()
        words = ("stage.max_steps=4", "stage.batch_size=4", "stage.save_every_steps=2")
        first = stage_runner(*kit.chosen(), *words, *kit.words, interrupt_at=2)
        assert first.code == 130, first.err
        return stage_runner(*kit.chosen(), *words, *kit.words, runs=first.runs).assert_ok()

    def test_it_tracks_without_a_failure(self, tracked: Outcome) -> None:
        assert tracked.result["resumed_at"] == [2]
        assert not [line for line in tracked.result["warnings"] if line.startswith("observer ")]

    def test_its_seconds_are_told(self, tracked: Outcome) -> None:
        assert f"tracker:{self.tracker}" in tracked.result["time_by_plugin"]

    def test_its_files_stand_in_the_run_folder(self, tracked: Outcome) -> None:
        if not self.writes:
            pytest.skip("it leaves no file")
        assert list(tracked.folder.glob(self.writes)), f"nothing matches {self.writes}"
