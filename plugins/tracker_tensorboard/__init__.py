"""TensorBoard as a tracker. This entry module imports neither tensorboard nor torch; tracker.py does the work."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import TrackerConfig, TrackerSpec, hookimpl, number, require


@dataclass
class TensorboardConfig(TrackerConfig):
    """TensorBoard: event files in the run folder; look at them with `tensorboard --logdir runs`."""

    folder: str = "tensorboard"
    """Folder of the event files; a relative one lies in the run folder."""
    flush_s: float = number(30.0, above=0, at_most=86400)
    """Seconds after which waiting events are written to the disk."""
    max_samples: int = number(16, at_least=0, at_most=1_000_000)
    """Samples written as text each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.folder), "tracker.folder", "a folder", self.folder)


@hookimpl
def register_trackers() -> list[TrackerSpec]:
    """The tracker `tensorboard`."""
    return [
        TrackerSpec(
            name="tensorboard",
            config=TensorboardConfig,
            impl="plugins.tracker_tensorboard.tracker:TensorboardTracker",
            summary="TensorBoard event files in the run folder",
            requires=("tensorboard",),
        )
    ]
