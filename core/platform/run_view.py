"""What everyone may know of a plan and of a run: observers, trackers, wrappers of hooks and `modify_plan`. Torch-free.

The values behind these protocols are core.planning.plan.Plan and core.training.run.StageRun. They stand on higher
floors and have more; what a stage may use of its own run is documented there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from core.platform.specs import StageSpec
from core.settings.schema import RunConfig


class PlannedStage(Protocol):
    """One stage of a plan."""

    spec: StageSpec
    cfg: RunConfig
    """The whole configuration, with this stage's settings as `cfg.stage`."""
    key: str
    """Hash of all that its artifact depends on."""
    state: str
    """`run`, `resume` or `reuse`."""
    warnings: list[str]
    """Shown with the plan, and kept in plan.json and the report. Append to it."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def algorithm(self) -> str:
        """Name of the variant, or empty."""

    @property
    def title(self) -> str:
        """Stage and algorithm for people."""


class PlanView(Protocol):
    """The chain of stages that a command will run, the one that was asked for last."""

    @property
    def stages(self) -> Sequence[PlannedStage]:
        """In the order in which they run."""

    @property
    def target(self) -> PlannedStage:
        """The stage that was asked for."""


class Run(Protocol):
    """A stage at work. Nothing of it can be assigned to."""

    @property
    def plan(self) -> PlannedStage:
        """What is carried out."""

    @property
    def cfg(self) -> RunConfig:
        """The configuration of this stage."""

    @property
    def name(self) -> str:
        """Name of the stage: the prefix of its metrics."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def group(self) -> str:
        """Name that ties the runs of one command together."""

    @property
    def parents(self) -> Sequence[Mapping[str, str]]:
        """The artifacts that the stage starts from: `stage`, `key` and `run_dir` of each."""

    @property
    def plan_json(self) -> Mapping[str, Any]:
        """Contents of plan.json."""

    @property
    def config_json(self) -> Mapping[str, Any]:
        """The resolved configuration without secrets, as JSON values."""
