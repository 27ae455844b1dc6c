"""What core does where a stage says nothing: every hook here is tried last."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pluggy

from core.artifacts.artifact import export_models
from core.models.loading import models_for_roles
from core.models.roles import Models
from core.platform.hookspecs import PROJECT
from core.training.evaluate import score_heldout
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
    """`max_steps`, or epochs over the training examples."""
    cfg = run.cfg.stage
    if cfg.max_steps is not None:
        return cfg.max_steps
    return max(1, math.ceil(len(data.train) * cfg.epochs / cfg.batch_size)) if data.train else 0


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
