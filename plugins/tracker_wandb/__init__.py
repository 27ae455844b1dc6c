"""Weights & Biases as a tracker. This entry module imports neither wandb nor torch; tracker.py does the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from core.api import TrackerConfig, TrackerSpec, hookimpl, require


class WandbMode(StrEnum):
    """Where a run is logged."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class WandbConfig(TrackerConfig):
    """Weights & Biases: one W&B run for each stage, grouped by the run's group."""

    project: str = "preftune"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; unset takes the account's own."""
    mode: WandbMode = WandbMode.auto
    """auto follows WANDB_MODE where it is set, else is online with an API key in WANDB_API_KEY or netrc and offline
    without one. Offline runs lie in the run folder and are sent later with `wandb sync`."""
    run_name: str | None = None
    """Name of the W&B run; unset takes stage, algorithm and the run folder's name."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    log_artifacts: bool = False
    """Send the artifact's files; otherwise W&B knows their hashes and where they lie."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.project), "tracker.project", "a name", self.project)


@hookimpl
def register_trackers() -> list[TrackerSpec]:
    """The tracker `wandb`."""
    return [
        TrackerSpec(
            name="wandb",
            config=WandbConfig,
            impl="plugins.tracker_wandb.tracker:WandbTracker",
            summary="Weights & Biases, offline where there is no API key",
            requires=("wandb",),
        )
    ]
