"""DPO (arXiv:2305.18290, eq. 7) as a stranger writes it, out of `core.api` alone; stage module: outside_dpo_stage."""

from dataclasses import dataclass

from core.api import StageConfig, StageSpec, hookimpl


@dataclass
class Config(StageConfig):
    """Settings of `stage=outside`."""

    lr: float = 1e-6
    """Peak learning rate."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    warmup_frac: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""


@hookimpl
def register_stages():
    roles = ("policy", "reference")
    return [StageSpec("outside", Config, "outside_dpo_stage:Outside", "preference", "DPO again", roles=roles)]
