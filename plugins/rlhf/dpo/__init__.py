"""Settings of the DPO family. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import StageConfig, StageSpec, number


@dataclass
class DpoConfig(StageConfig):
    """Settings of `algorithm=dpo`, and what its family shares. `batch_size` counts pairs."""

    lr: float = 1e-6
    """Peak learning rate (5e-7 to 1e-6 for whole models; about 1e-4 with adapters)."""
    beta: float = number(0.1, above=0, at_most=10_000)
    """Temperature: how strongly the policy is held to the reference (0.1 to 0.5)."""
    warmup_frac: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""


@dataclass
class SmoothedConfig(DpoConfig):
    """Settings of `algorithm=cdpo` and `algorithm=robust`."""

    label_smoothing: float = number(0.1, at_least=0, below=0.5)
    """Assumed share of wrong labels, below 0.5."""


@dataclass
class IpoConfig(DpoConfig):
    """Settings of `algorithm=ipo`."""

    average: bool = True
    """Average log-probabilities over tokens, as its authors do; false sums them, as in the DPO repository."""


def _spec(algorithm: str, config: type[DpoConfig], impl: str, summary: str, paper: str) -> StageSpec:
    return StageSpec(
        name="rlhf", algorithm=algorithm, config=config, impl=f"plugins.rlhf.dpo.stage:{impl}", summary=summary,
        paper=paper, data="preference", roles=("policy", "reference"), after={"policy": "sft"},
    )  # fmt: skip


SPECS = [
    _spec("dpo", DpoConfig, "Dpo", "direct preference optimisation", "Rafailov et al. 2023, arXiv:2305.18290"),
    _spec("cdpo", SmoothedConfig, "Cdpo", "DPO with conservative labels", "Mitchell 2023"),
    _spec("robust", SmoothedConfig, "Robust", "DPO unbiased under label noise", "Chowdhury 2024, arXiv:2403.00409"),
    _spec("ipo", IpoConfig, "Ipo", "identity preference optimisation", "Azar et al. 2023, arXiv:2310.12036"),
]
