"""Bradley-Terry reward modelling. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import StageConfig, StageSpec, hookimpl, number


@dataclass
class RewardStageConfig(StageConfig):
    """Settings of `stage=reward`."""

    lr: float = 5e-5
    """Peak learning rate; for models of about 100M parameters (9e-6 in InstructGPT, for 6B)."""
    epochs: float = 1.0
    """Passes over the pairs; more than one overfits quickly (InstructGPT, appendix C)."""
    margin: bool = False
    """Subtract each pair's margin inside the sigmoid (Llama 2); needs a `margin` column."""
    centering: float = number(0.01, at_least=0)
    """Weight of mean((r_chosen + r_rejected)^2), which keeps rewards near 0; 0.01 after arXiv:2312.09244."""


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `reward`."""
    return [
        StageSpec(
            name="reward",
            config=RewardStageConfig,
            impl="plugins.reward.stage:Reward",
            data="preference",
            summary="Bradley-Terry reward model on preference pairs, with margin and centering",
            roles=("reward_model",),
            makes="reward_model",
            paper="Ouyang et al. 2022, arXiv:2203.02155, appendix C",
        )
    ]
