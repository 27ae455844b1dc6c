"""A stage without its artifact: plan, data, models and step loop of a real run, open to be looked at. Loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.config.typed import typed_config
from core.console import Console
from core.planning.make import make_plan
from core.testing.run import read_rows
from core.training.loop import StepLoop
from core.training.opening import open_stage


class Bench:
    """One stage, ready to make steps; `close` it when done."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        """arguments: words of the command line; folder: the run folder, which must not exist."""
        cfg, registry, config_json = typed_config(arguments)
        chain = make_plan(cfg, registry)
        plan = chain.target
        plan.run_dir = folder
        folder.mkdir(parents=True)
        self.opened = open_stage(chain, plan, registry, Console(), config_json, "test")
        self.run, self.recorder, self.hook = self.opened.run, self.opened.recorder, self.opened.run.hooks
        self.stage: Any = self.opened.registered[0]
        """The instance of the stage's class."""
        self.data = self.hook.build_data(run=self.run)
        self.models = self.hook.build_models(run=self.run)
        self.run.parts.hold(self.models, 0)
        self.fitted: Any = None
        """What the last `fit` returned."""

    def make_data(self) -> Any:
        """Let the stage make its examples with the model, as a run does before its first step."""
        self.data = self.hook.make_data(run=self.run, models=self.models, data=self.data)
        self.recorder.made(getattr(self.data, "facts", {}), resumed=False)
        return self.data

    def total_steps(self) -> int:
        """Steps of the run."""
        return self.hook.total_steps(run=self.run, data=self.data)

    def collect(self, step: int = 0) -> Any:
        """One iteration's batch."""
        return self.hook.collect_batch(run=self.run, models=self.models, data=self.data, step=step)

    def losses(self, step: int = 0) -> tuple[list[float], int]:
        """Loss of each update of a step's batch, all before the first update, and the number of micro-batches."""
        updates = self.collect(step).updates
        with torch.no_grad():
            sums = [sum(self.loss(micro_batch).loss.item() for micro_batch in update) for update in updates]
        return sums, sum(len(update) for update in updates)

    def loss(self, micro_batch: Any) -> Any:
        """The stage's answer for one micro-batch."""
        return self.hook.compute_loss(run=self.run, models=self.models, micro_batch=micro_batch)

    def evaluate(self, step: int = 0) -> Any:
        """The stage's held-out evaluation."""
        with torch.no_grad():
            return self.hook.evaluate(run=self.run, models=self.models, data=self.data, step=step)

    def fit(self) -> list[dict[str, float]]:
        """Make all steps through the hooks, and finish; the training metrics of each, without the stage's name."""
        hooks, more = self.hook, {"run": self.run, "models": self.models, "data": self.data}
        self.recorder.begin(self.run.plan.title, self.total_steps())
        self.fitted = hooks.fit(recorder=self.recorder, **more)
        hooks.finish(**more)
        return self.steps()

    def steps(self) -> list[dict[str, float]]:
        """The training metrics recorded so far."""
        prefix = f"{self.run.name}/"
        rows = read_rows(self.run.folder / "metrics.jsonl")
        trained = [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in rows]
        return [row for row in trained if row]

    def weights(self, role: str = "policy") -> dict[str, torch.Tensor]:
        """A copy of a role's weights."""
        module = self.models.by_role()[role].module
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    def loop(self) -> StepLoop:
        """A step loop that has made no step."""
        return StepLoop(self.run, self.models, self.data, self.recorder)

    def close(self) -> None:
        """Give engines, workers and models back."""
        self.opened.close()
