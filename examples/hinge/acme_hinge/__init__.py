"""Hinge loss on preference pairs (SLiC-HF, arXiv:2305.10425). Torch-free."""

from dataclasses import dataclass

from core.api import StageConfig, StageSpec, hookimpl, number

PREFTUNE_API = 2


@dataclass
class HingeConfig(StageConfig):
    """Settings of `stage=hinge`."""

    lr: float = 1e-6
    """Peak learning rate."""
    margin: float = number(1.0, above=0)
    """Nats by which the chosen completion must lead."""
    chosen_weight: float = 0.01
    """Share of the chosen completion's negative log-likelihood, in nats a completion, mixed in."""


@hookimpl
def register_stages():
    text, paper = "hinge on preference pairs", "Zhao et al. 2023, arXiv:2305.10425"
    return [StageSpec("hinge", HingeConfig, "acme_hinge.stage:Hinge", "preference", summary=text, paper=paper)]


@hookimpl
def register_config_dirs():
    return ["pkg://acme_hinge.conf"]
