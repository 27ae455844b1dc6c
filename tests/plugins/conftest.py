"""A stage without its artifact: plan, data, models and step loop of a real run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.console import Console
from core.launch import typed_config
from core.ledger import Ledger
from core.opening import open_stage
from core.plan import make_plan
from core.registry import MODULES_VARIABLE, Registry
from core.testing.tiny import tiny_model as write_tiny_model
from core.testing.tiny import tiny_pairs
from core.trainer import StepLoop

FAKES = Path(__file__).parent / "fakes"


class Stage:
    """One stage, ready to make steps."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        cfg, _, config_json = typed_config(arguments)
        whole = make_plan(cfg, Registry.load())
        plan = whole.target
        plan.run_dir = folder
        folder.mkdir(parents=True)
        self.run = open_stage(whole, plan, Console(), cfg, config_json, "test", Ledger(Path(cfg.runs_dir)))
        self.hook = self.run.hook
        self.data = self.hook.build_data(run=self.run)
        self.run.total_steps = self.hook.total_steps(run=self.run, data=self.data)
        self.models = self.run.models = self.hook.build_models(run=self.run)

    def collect(self, step: int = 0) -> Any:
        """One iteration's batch."""
        return self.hook.collect_batch(run=self.run, models=self.models, data=self.data, step=step)

    def fit(self) -> list[dict[str, float]]:
        """Make all steps through the hook, offset and all; the training metrics of each, without the stage's name."""
        self.counts = self.hook.fit(run=self.run, models=self.models, data=self.data)
        return self.steps()

    def steps(self) -> list[dict[str, float]]:
        """The training metrics recorded so far."""
        prefix = f"{self.run.stage_name}/"
        rows = [json.loads(line) for line in (self.run.dir / "metrics.jsonl").read_text().splitlines()]
        trained = [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in rows]
        return [row for row in trained if row]

    def weights(self, role: str = "policy") -> dict[str, torch.Tensor]:
        """A copy of a role's weights."""
        module = self.models.by_role()[role].module
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    def loop(self) -> StepLoop:
        """A step loop that has made no step."""
        return StepLoop(self.run, self.models, self.data)


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model with tokenizer and chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_chat"))


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of preference rows with answers."""
    return tiny_pairs(tmp_path_factory.mktemp("tiny_rows") / "pairs.jsonl")


@pytest.fixture
def make_stage(
    tiny_chat: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stage]]:
    """Builds a stage from command-line words; the toy reward is known, held-out generation is off."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv(MODULES_VARIABLE, "toy_rewards")
    made: list[Stage] = []

    def make(*words: str) -> Stage:
        name = next(word for word in words if word.startswith("stage=")).removeprefix("stage=")
        arguments = [
            f"model.source={tiny_chat}", f"data.path={tiny_rows}", "rollout=transformers", "tracker=none",
            "runtime.dtype=fp32", f"runs_dir={tmp_path / 'runs'}", f"pipeline.stages=[{name}]", "eval.max_items=0",
            "stage.save_every_steps=0",
        ]  # fmt: skip
        made.append(Stage([*arguments, *words], tmp_path / f"run-{len(made)}"))
        return made[-1]

    yield make
    for stage in made:
        stage.run.close()
