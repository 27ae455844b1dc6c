"""What every data source must keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import Contract
from core.testing.run import StageRunner


class DataSourceContract(Contract):
    """A generator of records."""

    source: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...]] = ("sft",)
    """Stages that its rows must serve."""

    def entry(self) -> Any:
        found = Registry.load().data_sources.get(self.source)
        assert found is not None, f"no plugin brings the data source '{self.source}'"
        return found

    @pytest.fixture
    def write(self) -> Any:
        return Registry.load().resolve(self.entry().spec)

    def test_the_seed_decides_the_rows(self, write: Any, tmp_path: Path) -> None:
        texts = []
        for number, seed in enumerate((1, 1, 2)):
            folder = tmp_path / str(number)
            folder.mkdir()
            write(folder, seed)
            texts.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        assert texts[0], "it wrote no file"
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    def test_nothing_held_out_is_trained_on(self, write: Any, tmp_path: Path) -> None:
        write(tmp_path, 1)
        prompts = {path.stem: {json.dumps(json.loads(line).get("prompt")) for line in path.read_text().splitlines()}
                   for path in tmp_path.glob("*.jsonl")}  # fmt: skip
        held = prompts.pop("heldout", set())
        assert prompts, "it wrote no rows to train on"
        for name, seen in prompts.items():
            assert not held & seen, f"heldout.jsonl shares prompts with {name}.jsonl"

    def test_stages_train_on_it(self, stage_runner: StageRunner, monkeypatch: Any, tmp_path: Path) -> None:
        """Two steps each; no row goes to quarantine."""
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
        for stage in self.stages:
            outcome = stage_runner(
                f"stage={stage}", "data=none", "data.path=null", f"data.source={self.source}", "stage.max_steps=2",
                "stage.batch_size=2", "model.max_length=512", *self.words,
            ).assert_ok()  # fmt: skip
            assert not (outcome.folder / "quarantine.jsonl").is_file()
            if stage == self.stages[0]:  # later ones find its rows in the cache
                assert self.entry().owner.plugin in outcome.result["time_by_plugin"]
