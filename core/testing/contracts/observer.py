"""What every observer must keep."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import Contract
from core.testing.run import Outcome, StageRunner


class ObserverContract(Contract):
    """A plugin that watches runs; `plugin` is the name of its entry point (or its module in PREFTUNE_PLUGINS)."""

    plugin: ClassVar[str] = ""
    section: ClassVar[str] = ""
    """Title of its part of the report, where it has one."""

    def entry(self) -> Any:
        found = [record for record in Registry.load().plugins if record.owner.plugin == self.plugin]
        assert found, f"there is no plugin '{self.plugin}'"
        spec = SimpleNamespace(summary=found[0].hooks, config=dataclasses.make_dataclass("NoConfig", []))
        return SimpleNamespace(owner=found[0].owner, spec=spec)

    @pytest.fixture(scope="class")
    @classmethod
    def watched(cls, stage_runner: StageRunner) -> Outcome:
        """A short run."""
        words = ("stage=sft", "stage.max_steps=2", "stage.batch_size=4", "stage.save_every_steps=1")
        return stage_runner(*words, *cls().words).assert_ok()

    def test_it_watches_without_a_failure(self, watched: Outcome) -> None:
        assert not [line for line in watched.result["warnings"] if f"observer '{self.plugin}'" in line]

    def test_its_seconds_are_told(self, watched: Outcome) -> None:
        assert self.plugin in watched.result["time_by_plugin"]

    def test_its_section_is_in_the_report(self, watched: Outcome) -> None:
        if not self.section:
            pytest.skip("it has no section")
        for name in ("report.html", "report.md"):
            assert self.section in (watched.folder / name).read_text(encoding="utf-8"), name
