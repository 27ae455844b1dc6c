"""What a finished stage tells: the contents of result.json. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

RESULT_VERSION = 1


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
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `before` and `after` of each of `eval.metrics`."""
    heldout_loss_by_source: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Of each source of the records, where there are several: `before` and `after`."""
    first: dict[str, float] = field(default_factory=dict)
    """All held-out metrics before training."""
    last: dict[str, float] = field(default_factory=dict)
    """All held-out metrics after training."""
    retention: list[dict[str, Any]] = field(default_factory=list)
    """What was forgotten: `name`, `before`, `after`, `change`, `interval`, `items` of each measure."""
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
    time_by_part: dict[str, float] = field(default_factory=dict)
    time_by_plugin: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    """What the stage has to tell of the examples that it made."""
    reward_errors: int = 0
    run_dir: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    """What it was trained on, in short; plan.json has it in full."""
    warnings: list[str] = field(default_factory=list)
    start: float | None = None
    """The headline metric before the whole chain, where its first stages measured the same."""
    pipeline: list[dict[str, Any]] = field(default_factory=list)
    """The stages of the chain up to this one, in short."""

    def to_json(self) -> dict[str, Any]:
        """Contents of result.json."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.heldout_loss_by_source:
            del values["heldout_loss_by_source"]
        return {"version": RESULT_VERSION, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StageResult:
        """Counterpart of `to_json`; names that are not known are left out, those that are missing keep defaults."""
        known = {item.name for item in fields(cls)}
        return cls(**{"stage": "", **{name: value for name, value in values.items() if name in known}})

    @classmethod
    def read(cls, run_dir: Path) -> StageResult | None:
        """That of a run folder; None where there is none."""
        path = run_dir / "result.json"
        return cls.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
