"""What a stage is: a class whose methods are the stage hooks, each with what core does where a stage says nothing.

Calls go through the plugin manager (core.training.run.StageCalls), so that any package may wrap a hook of any stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar

from core.artifacts.artifact import export_model
from core.errors import ConfigError, PluginError
from core.models.by_role import models_for_roles
from core.models.roles import Models
from core.platform.hookspecs import PROJECT, hookimpl
from core.platform.registry import STAGE_HOOKS
from core.results import StageResult
from core.settings.schema import StageConfig
from core.tokens.examples import StageData
from core.training.evaluate import score_heldout
from core.training.loop import Fitted, StepLoop
from core.training.order import step_items
from core.training.recorder import Recorder
from core.training.run import StageRun
from core.types import Batch, Evaluation, LossOutput, Section

C = TypeVar("C", bound=StageConfig, default=Any)
"""The stage's own settings."""
D = TypeVar("D", default=StageData)
"""What `build_data` returns."""
B = TypeVar("B", default=Any)
"""A micro-batch."""

_ANSWERED = (*STAGE_HOOKS, "report_section")
"""Hooks that a stage's methods answer; `report_section` is one of the observers'."""


class Stage(Generic[C, D, B]):
    """A stage, or one algorithm of it; one instance is made for each run.

    A subclass names its settings, and where they are not the usual ones its data and its micro-batches:
    `class Dpo(Stage[DpoConfig, StageData, PairRow])`. It must answer `build_data`, `collect_batch` and `compute_loss`;
    one with a loop of its own (`fit`) needs neither of the last two.
    """

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.cfg: C = run.cfg.stage

    def __init_subclass__(cls) -> None:
        for name in _ANSWERED:
            own = vars(cls).get(name)
            if callable(own) and not hasattr(own, f"{PROJECT}_impl"):
                hookimpl(own)

    def build_data(self) -> D:
        """The examples: an object with `train` and `heldout` sequences. Loads no weights: the preview calls it too."""
        raise self._silent("build_data")

    def build_models(self) -> Models:
        """One model for each role of the stage's spec."""
        return models_for_roles(self.run.start, self.run.plan.spec.roles, self.run.parts.shape())

    def make_data(self, models: Models, data: D) -> D:
        """What takes the place of `data` once the models stand, e.g. examples made with the rollout engine."""
        del models
        return data

    def total_steps(self, data: D) -> int:
        """`max_steps`, else the steps that see `target_tokens`, else epochs over the training examples."""
        cfg = self.cfg
        train: Sequence[Any] = data.train  # type: ignore[attr-defined]
        if cfg.max_steps is not None:
            return cfg.max_steps
        if cfg.target_tokens is not None and train:
            return self._steps_for(train, cfg.target_tokens)
        return max(1, math.ceil(len(train) * cfg.epochs / cfg.batch_size)) if train else 0

    def _steps_for(self, examples: Sequence[Any], wanted: int) -> int:
        """The steps after which `wanted` target tokens were seen for the first time, in the order of training.

        Raises ConfigError for examples that do not count theirs (`trained`).
        """
        if not hasattr(examples[0], "trained"):
            raise ConfigError(f"stage '{self.run.name}' does not count target tokens", "stage.target_tokens",
                              "set stage.max_steps or stage.epochs")  # fmt: skip
        seen = steps = 0
        while seen < wanted:
            seen += sum(example.trained for example in self.next_examples(examples, steps))
            steps += 1
        return steps

    def next_examples(self, examples: Sequence[Any], step: int) -> list[Any]:
        """The `batch_size` examples of step `step`, in the order that the settings ask for."""
        return step_items(examples, step, self.cfg.batch_size, self.run.seed_for("order"), self.cfg.order)

    def collect_batch(self, models: Models, data: D, step: int) -> Batch[B]:
        """The work of step `step` (counted from 0). Must depend only on its arguments and on saved state."""
        raise self._silent("collect_batch")

    def compute_loss(self, models: Models, micro_batch: B) -> LossOutput:
        """Loss of one micro-batch of the batch, as its share of the whole update's."""
        raise self._silent("compute_loss")

    def evaluate(self, models: Models, data: D, step: int) -> Evaluation:
        """Greedy completions of the held-out prompts, scored. Must not change training randomness."""
        del data, step
        return score_heldout(self.run, models)

    def fit(self, models: Models, data: D, recorder: Recorder) -> Fitted:
        """Core's step loop. A stage that overrides it brings a trainer of its own, which one process alone can run."""
        return StepLoop(self.run, models, data, recorder).fit()

    def finish(self, models: Models, data: D) -> None:
        """After the last step, before the export: what the finished model still needs."""

    def export(self, models: Models, folder: Path) -> None:
        """The trained model in transformers' format, its tokenizer, generation config and card, into `folder`."""
        export_model(self.run.plan, models, folder, self.run.folder / "artifact")

    def save_state(self) -> dict[str, Any]:
        """What the stage must find again after a resume, as JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `save_state`, called before the first step of a resumed run."""

    def report_section(self, result: StageResult) -> Section | None:
        """The stage's part of the report."""
        del result
        return None

    def _silent(self, name: str) -> PluginError:
        return PluginError(
            f"the stage '{self.run.name}' does not implement {name}", type(self).__qualname__,
            "see the stage hooks in docs/plugins.md",
        )  # fmt: skip


for _name in _ANSWERED:
    hookimpl(vars(Stage)[_name])
