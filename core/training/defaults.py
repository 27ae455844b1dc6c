"""What core does where a stage says nothing: every hook here is tried last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pluggy

from core.artifacts.artifact import export_models
from core.errors import ConfigError
from core.models.loading import models_for_roles
from core.models.roles import Models
from core.platform.hookspecs import PROJECT
from core.training.evaluate import score_heldout
from core.training.order import step_items
from core.training.run import StageRun
from core.training.trainer import StepLoop

_hookimpl = pluggy.HookimplMarker(PROJECT)


@_hookimpl(trylast=True)
def build_models(run: StageRun) -> Models:
    """One model for each role."""
    return models_for_roles(run)


@_hookimpl(trylast=True)
def make_data(data: Any) -> Any:
    """The data as `build_data` made it."""
    return data


@_hookimpl(trylast=True)
def total_steps(run: StageRun, data: Any) -> int:
    """`max_steps`, else the steps that see `target_tokens`, else epochs over the training examples."""
    cfg = run.cfg.stage
    if cfg.max_steps is not None:
        return cfg.max_steps
    if cfg.target_tokens is not None and data.train:
        return steps_for(run, data.train, cfg.target_tokens)
    return max(1, math.ceil(len(data.train) * cfg.epochs / cfg.batch_size)) if data.train else 0


def steps_for(run: StageRun, examples: Sequence[Any], wanted: int) -> int:
    """The steps after which `wanted` target tokens were seen for the first time, in the order of training.

    Raises ConfigError for examples that do not count theirs (`trained`).
    """
    cfg = run.cfg.stage
    if not hasattr(examples[0], "trained"):
        raise ConfigError(f"stage '{run.stage_name}' does not count target tokens", "stage.target_tokens",
                          "set stage.max_steps or stage.epochs")  # fmt: skip
    seen = steps = 0
    while seen < wanted:
        batch = step_items(examples, steps, cfg.batch_size, run.seed_for("order"), cfg.order)
        seen += sum(example.trained for example in batch)
        steps += 1
    return steps


@_hookimpl(trylast=True)
def evaluate(run: StageRun, models: Models) -> dict[str, float]:
    """Greedy completions of the held-out prompts, scored."""
    return score_heldout(run, models)


@_hookimpl(trylast=True)
def fit(run: StageRun, models: Models, data: Any) -> dict[str, float]:
    """The step loop."""
    return StepLoop(run, models, data).fit()


@_hookimpl(trylast=True)
def export(run: StageRun, models: Models, folder: Path) -> bool:
    """The trained model, its tokenizer, generation config and card."""
    export_models(run, models, folder)
    return True


@_hookimpl(trylast=True)
def save_state(run: StageRun) -> dict[str, Any]:
    """Nothing: the stage has no state of its own."""
    del run
    return {}
