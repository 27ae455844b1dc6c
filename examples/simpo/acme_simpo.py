"""SimPO (Meng et al. 2024, arXiv:2405.14734) as an algorithm of the built-in stage `rlhf`. Torch-free."""

from dataclasses import dataclass

from core.api import StageConfig, StageSpec, hookimpl, number

PREFTUNE_API = 2


@dataclass
class SimpoConfig(StageConfig):
    """Settings of `stage=rlhf algorithm=simpo`."""

    lr: float = 1e-6
    """Peak learning rate (3e-7 to 1e-6 in the paper, for whole models)."""
    beta: float = number(2.0, above=0)
    """Scale of the reward, which is beta times the mean log-probability of a completion's tokens (2 to 10)."""
    gamma_ratio: float = number(0.5, at_least=0)
    """Margin by which the chosen completion must lead, as a share of beta (0.3 to 0.5 in the paper's first runs)."""


@hookimpl
def register_stages():
    return [
        StageSpec(
            "rlhf", SimpoConfig, "acme_simpo_stage:SimPO", "preference", algorithm="simpo", after={"policy": "sft"},
            summary="reference-free, length-normalised preferences", paper="Meng et al. 2024, arXiv:2405.14734",
        )
    ]  # fmt: skip
