"""What a finished stage tells: the contents of result.json. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.readback import read_back

RESULT_VERSION = 2


@dataclass(frozen=True)
class MetricChange:
    """One of `eval.metrics` before and after training; None where it was not measured."""

    name: str = ""
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Retained:
    """A measure of what was forgotten: a loss or KL in nats a token, or the share of questions answered right."""

    name: str = ""
    before: float | None = None
    after: float | None = None
    change: float | None = None
    interval: list[float] = field(default_factory=list)
    """95 % interval of the change, items resampled in pairs."""
    items: int = 0


@dataclass(frozen=True)
class ChainStep:
    """A stage of the chain in short; None where it is not known."""

    stage: str = ""
    metric: str = ""
    """What people call its headline metric."""
    before: float | None = None
    after: float | None = None
    seconds: float | None = None
    """In its loop."""
    tokens: int | None = None
    """Real tokens that went through the trained model."""
    reused: bool | None = None
    """Whether its artifact was there already."""
    run_dir: str = ""


@dataclass(frozen=True)
class StageResult:
    """A stage that is done. Times are wall-clock seconds."""

    stage: str
    algorithm: str = ""
    metric: str = ""
    """What people call the headline metric."""
    before: float | None = None
    after: float | None = None
    interval: list[float] | None = None
    """95 % interval of `after` over its items."""
    delta_interval: list[float] | None = None
    """95 % interval of the change, over items that have both scores."""
    items: int = 0
    """Held-out items that were scored after training."""
    reward_before: float | None = None
    reward_after: float | None = None
    kl_to_reference: float | None = None
    """Nats a completion."""
    metrics: list[MetricChange] = field(default_factory=list)
    """Each of `eval.metrics`."""
    heldout_loss_by_source: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Of each source of the records, where there are several: `before` and `after`."""
    first: dict[str, float] = field(default_factory=dict)
    """All held-out metrics before training."""
    last: dict[str, float] = field(default_factory=dict)
    """All held-out metrics after training."""
    retention: list[Retained] = field(default_factory=list)
    """What was forgotten, a row a measure."""
    tokens: int = 0
    """Real tokens that went through the trained model."""
    steps: int = 0
    seconds: float = 0.0
    """In the loop, parts before a resume included."""
    wall_seconds: float = 0.0
    """Of the stage in this process."""
    peak_memory_gb: float = 0.0
    verified: bool = False
    resumed_at: list[int] = field(default_factory=list)
    """Steps that were done when the run was resumed, one number for each time."""
    stopped: str = ""
    """Why it ended before its last step; empty where it did not."""
    time_by_part: dict[str, float] = field(default_factory=dict)
    time_by_plugin: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    """What the stage has to tell of the examples that it made."""
    rows: dict[str, str] = field(default_factory=dict)
    """How sequences went through the model of each role, and why not packed."""
    reward_errors: int = 0
    run_dir: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    """What it was trained on, in short; plan.json has it in full."""
    warnings: list[str] = field(default_factory=list)
    start: float | None = None
    """The headline metric before the whole chain, where its first stages measured the same."""
    pipeline: list[ChainStep] = field(default_factory=list)
    """The stages of the chain up to this one."""

    def as_step(self, reused: bool = False, run_dir: str = "") -> ChainStep:
        """The stage as one of a chain."""
        return ChainStep(
            self.stage, self.metric, self.before, self.after, self.seconds, self.tokens, reused, run_dir or self.run_dir
        )

    def to_json(self) -> dict[str, Any]:
        """Contents of result.json."""
        values = dict(vars(self))
        for name in ("metrics", "retention", "pipeline"):
            values[name] = [dict(vars(row)) for row in values[name]]
        if not self.heldout_loss_by_source:
            del values["heldout_loss_by_source"]
        return {"version": RESULT_VERSION, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StageResult:
        """Counterpart of `to_json`, also of what an older version wrote or a disk damaged: names that are not known are
        left out, those that are missing or of another type keep defaults."""
        return read_back(cls, values, stage="")

    @classmethod
    def read(cls, run_dir: Path) -> StageResult | None:
        """That of a run folder; None where there is none, or one that cannot be read."""
        try:
            values = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return cls.from_json(values) if isinstance(values, dict) else None
