"""Reinforcement learning from human feedback, an algorithm a folder: settings in its `__init__`, the whole objective in
its `stage`. Torch-free entry module."""

from __future__ import annotations

from core.api import StageSpec, hookimpl
from plugins.rlhf import dpo, grpo, ppo, rloo


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `rlhf` in its variants."""
    return [ppo.SPEC, grpo.SPEC, rloo.SPEC, *dpo.SPECS]
