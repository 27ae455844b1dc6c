"""Two stages with a loop of their own, torch-free: `ownloop` writes and takes up checkpoints, `forgetful` does not."""

from __future__ import annotations

from core.api import StageConfig, StageSpec, hookimpl


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stages."""
    return [
        StageSpec("ownloop", StageConfig, "own_loop_stages:OwnLoop", "sft", "a loop of its own"),
        StageSpec("forgetful", StageConfig, "own_loop_stages:Forgetful", "sft", "a loop that keeps nothing"),
    ]
