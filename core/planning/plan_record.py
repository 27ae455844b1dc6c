"""What plan.json says: a plan as values that can be read back. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.data.info import DatasetInfo
from core.readback import read_back

PLAN_VERSION = 1


@dataclass(frozen=True)
class StepBatch:
    """What a step trains on, estimated from the first records."""

    size: int = 0
    """Units of a step."""
    unit: str = ""
    """What is counted: `records`, `prompts`, `pairs` or `chunks`."""
    tokens: int = 0
    """Of a step, sampled completions included."""
    text: str = ""
    """All of it for people; empty where it is not known."""
    micro_batch_tokens: int | None = None
    """Most tokens that pass through the model at once."""


@dataclass(frozen=True)
class TrainedRow:
    """A row that the stage trains on."""

    text: str = ""
    """With its trained tokens in `[[…]]`, see core.tokens.heatmap.marked."""
    tokens: int = 0
    trained: int = 0
    """Tokens with a weight in the loss."""


@dataclass(frozen=True)
class StagePreview:
    """Steps, batch, a few rows and the rough cost of a stage, before anything heavy is loaded."""

    total_steps: int = 0
    """Estimated from the records; 0 where no preview was made."""
    batch: StepBatch = field(default_factory=StepBatch)
    trained_rows: list[TrainedRow] = field(default_factory=list)
    """Up to three."""
    memory_gb_estimate: float | None = None
    """Peak memory in GB; None while the model is not on this machine, as are the two texts then empty."""
    memory_estimate: str = ""
    """The same for people."""
    time_estimate: str = ""
    """Wall-clock time for people."""

    def to_json(self) -> dict[str, Any]:
        """The fields of plan.json; none where no preview was made."""
        if not self.total_steps:
            return {}
        told = {
            "total_steps": self.total_steps,
            "batch": dict(vars(self.batch)),
            "trained_rows": [dict(vars(row)) for row in self.trained_rows],
        }
        if self.memory_gb_estimate is None:
            return told
        return told | {
            "memory_gb_estimate": self.memory_gb_estimate,
            "memory_estimate": self.memory_estimate,
            "time_estimate": self.time_estimate,
        }


@dataclass(frozen=True)
class StageOwner:
    """What the stage came from."""

    distribution: str = ""
    version: str = ""
    plugin: str = ""


@dataclass(frozen=True)
class StageEntry:
    """A stage of the chain."""

    stage: str = ""
    algorithm: str = ""
    """The variant, or empty."""
    key: str = ""
    """Hash of all that its artifact depends on."""
    state: str = ""
    """`run`, `resume` or `reuse`."""
    run_dir: str | None = None


@dataclass(frozen=True)
class PlanRecord:
    """The plan of one stage and the chain that it is a part of."""

    stage: str = ""
    algorithm: str = ""
    key: str = ""
    owner: StageOwner = field(default_factory=StageOwner)
    paper: str = ""
    stages: list[StageEntry] = field(default_factory=list)
    """The whole chain in order."""
    model: str = ""
    """Source of the model that the chain starts from."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role to where its weights come from."""
    data: DatasetInfo | None = None
    optimizer: str = ""
    engine: str | None = None
    """Name of the rollout engine; None, like reward and judge, where the stage takes none."""
    reward: str | None = None
    judge: str | None = None
    preview: StagePreview = field(default_factory=StagePreview)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Contents of plan.json."""
        return {
            "version": PLAN_VERSION,
            "stage": self.stage,
            "algorithm": self.algorithm,
            "key": self.key,
            "owner": dict(vars(self.owner)),
            "paper": self.paper,
            "stages": [dict(vars(entry)) for entry in self.stages],
            "model": {"source": self.model},
            "roles": {role: {"from": source} for role, source in self.roles.items()},
            "data": (self.data or DatasetInfo()).to_json(),
            "optimizer": self.optimizer,
            "engine": self.engine,
            "reward": self.reward,
            "judge": self.judge,
            **self.preview.to_json(),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanRecord:
        """Counterpart of `to_json`, also of what an older version wrote or a disk damaged; see core.readback."""
        roles = values.get("roles")
        sources = {role: _inner(one, "from") for role, one in roles.items()} if isinstance(roles, Mapping) else {}
        model = _inner(values.get("model"), "source")
        return read_back(cls, {**values, "model": model, "roles": sources, "preview": values})


def _inner(value: object, name: str) -> object:
    """One value of a JSON object; None of anything else."""
    return value.get(name) if isinstance(value, Mapping) else None
