"""The hooks. Registration hooks are answered by torch-free entry modules; stage hooks by the one chosen stage; observer
hooks by anyone, and a failing observer never ends a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from core.platform.run_view import PlanView, Run
    from core.platform.specs import (
        CommandSpec,
        DataSourceSpec,
        DialectSpec,
        EngineSpec,
        MetricSpec,
        OptimizerSpec,
        PeftMethodSpec,
        ReaderSpec,
        RewardSpec,
        StageSpec,
        TextSetSpec,
        TrackerSpec,
        TransformSpec,
    )
    from core.results import StageResult
    from core.settings.schema import RunConfig
    from core.types import Batch, Evaluation, LossOutput, Section, Stop

PROJECT = "preftune"
"""Name of the plugin system, of the entry-point group, and prefix of the environment variables."""

API_VERSION = 2
"""Raised when a hook, or a name of `core.api`, is taken away or changes its meaning; additions leave it as it is."""
OLDEST_API = 2
"""Plugins built for an earlier version are refused."""
API_ATTRIBUTE = "PREFTUNE_API"
"""Attribute of an entry module: the API version that it was built for."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of an entry module, or a method of a tracker, as an answer to the hook of its name; the methods of a
stage are marked by its base. With `wrapper=True` it is a generator around the others' answers; `tryfirst=True` and
`trylast=True` move it in the order."""


class Deprecated(DeprecationWarning):
    """Something of the API that will go; the text names what replaces it. A hook is announced to go by
    `@hookspec(warn_on_impl=Deprecated("… write … instead"))`; every start then names the plugins that answer it."""


class RegistrationHooks:
    """Asked once for each run, of every plugin, before torch is imported."""

    @hookspec
    def register_stages(self) -> list[StageSpec]:
        """Stages and algorithm variants that the plugin brings."""

    @hookspec
    def register_reward_models(self) -> list[RewardSpec]:
        """Reward models that the plugin brings."""

    @hookspec
    def register_rollout_engines(self) -> list[EngineSpec]:
        """Rollout engines that the plugin brings."""

    @hookspec
    def register_optimizers(self) -> list[OptimizerSpec]:
        """Optimizers that the plugin brings."""

    @hookspec
    def register_peft_methods(self) -> list[PeftMethodSpec]:
        """Methods of parameter-efficient tuning that the plugin brings, each on top of one of peft's own."""

    @hookspec
    def register_metrics(self) -> list[MetricSpec]:
        """Measures of held-out completions, or of the models, that the plugin brings."""

    @hookspec
    def register_data_sources(self) -> list[DataSourceSpec]:
        """Named data sources (generators) that the plugin brings."""

    @hookspec
    def register_record_transforms(self) -> list[TransformSpec]:
        """Filters, de-duplications, augmentations and checks of records that the plugin brings."""

    @hookspec
    def register_readers(self) -> list[ReaderSpec]:
        """File formats that the plugin reads."""

    @hookspec
    def register_dialects(self) -> list[DialectSpec]:
        """Layouts of rows that the plugin knows; tried before the built-in ones."""

    @hookspec
    def register_trackers(self) -> list[TrackerSpec]:
        """Trackers that the plugin brings; the chosen one is registered as an observer."""

    @hookspec
    def register_text_sets(self) -> list[TextSetSpec]:
        """Named sets of short texts that the plugin brings."""

    @hookspec
    def register_commands(self) -> list[CommandSpec]:
        """Commands, `python -m core NAME …`, that the plugin brings."""

    @hookspec
    def register_config_dirs(self) -> list[str]:
        """Folders with YAML presets, e.g. `pkg://acme_orpo.conf`."""

    @hookspec
    def key_parts(self, cfg: RunConfig) -> dict[str, Any]:
        """What results depend on that this plugin changes from outside, as an observer that may stop a run or as a
        wrapper of stage hooks: its own settings, as JSON values by name. Part of the key of every stage, so that a
        result made under other settings is not reused. Without it the run takes no `Stop` from an observer."""

    @hookspec
    def modify_plan(self, cfg: RunConfig, plan: PlanView) -> None:
        """Edit the plan in place: add warnings, change roles. Called in the order of plugin names."""


class StageHooks:
    """Answered by the chosen stage, a core.torch_api.Stage, whose methods have these names and the types that are left
    open here; another package may wrap any of them with `@hookimpl(wrapper=True)` and ask for `run` too.

    models: core.torch_api.Models. data: what `build_data` returned. recorder: core.torch_api.Recorder.
    """

    @hookspec(firstresult=True)
    def build_data(self, run: Run) -> Any:
        """The stage's examples: an object with `train` and `heldout` sequences. Loads no weights."""

    @hookspec(firstresult=True)
    def build_models(self, run: Run) -> Any:
        """Models by role."""

    @hookspec(firstresult=True)
    def make_data(self, run: Run, models: Any, data: Any) -> Any:
        """What takes the place of `data` once the models stand: examples made with the rollout engine."""

    @hookspec(firstresult=True)
    def total_steps(self, run: Run, data: Any) -> int:
        """Number of steps of the run."""

    @hookspec(firstresult=True)
    def collect_batch(self, run: Run, models: Any, data: Any, step: int) -> Batch:
        """The work of step `step` (counted from 0). Must depend only on its arguments and on saved state."""

    @hookspec(firstresult=True)
    def compute_loss(self, run: Run, models: Any, micro_batch: Any) -> LossOutput:
        """Loss of one micro-batch of the batch."""

    @hookspec(firstresult=True)
    def evaluate(self, run: Run, models: Any, data: Any, step: int) -> Evaluation:
        """Held-out metrics. Must not change training randomness."""

    @hookspec(firstresult=True)
    def fit(self, run: Run, models: Any, data: Any, recorder: Any) -> Any:
        """The whole loop, a core.torch_api.Fitted. Core's step loop by default; a stage may bring a trainer of its own,
        which one process alone can run."""

    @hookspec(firstresult=True)
    def finish(self, run: Run, models: Any, data: Any) -> None:
        """After the last step, before the export: what the finished model still needs."""

    @hookspec(firstresult=True)
    def export(self, run: Run, models: Any, folder: Path) -> None:
        """Write the trained model into `folder`."""

    @hookspec(firstresult=True)
    def save_state(self, run: Run) -> dict[str, Any]:
        """What the stage must find again after a resume, as JSON values."""

    @hookspec(firstresult=True)
    def load_state(self, run: Run, state: dict[str, Any]) -> None:
        """Counterpart of `save_state`, called before the first step of a resumed run."""


class ObserverHooks:
    """Called for every observer apart; an exception is logged and survived. Observers return nothing, but for a
    core.api.Stop."""

    @hookspec
    def on_run_start(self, run: Run) -> None:
        """The run folder and the models stand; no step was made yet."""

    @hookspec
    def on_step_end(self, run: Run, step: int, metrics: dict[str, float]) -> Stop | None:
        """After each step; metric names carry the stage prefix. A `Stop` ends the run after this step."""

    @hookspec
    def on_eval_end(self, run: Run, step: int, metrics: dict[str, float]) -> Stop | None:
        """After each held-out evaluation. A `Stop` ends the run after this step."""

    @hookspec
    def on_samples(self, run: Run, step: int, rows: list[dict[str, Any]]) -> None:
        """Sample completions worth showing."""

    @hookspec
    def on_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """After a checkpoint was written and renamed into place."""

    @hookspec
    def on_run_end(self, run: Run, result: StageResult) -> None:
        """After the artifact was verified; `result` is what result.json holds."""

    @hookspec
    def on_run_error(self, run: Run, phase: str, step: int, error: BaseException) -> None:
        """The run is about to end with `error`."""

    @hookspec
    def report_section(self, run: Run, result: StageResult) -> Section | None:
        """A part of the report, or None."""
