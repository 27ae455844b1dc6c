"""GSPO (Zheng et al. 2025, arXiv:2507.18071) as an algorithm of the built-in stage `rlhf`. Torch-free."""

from dataclasses import dataclass

from core.api import hookimpl, number
from plugins.online import OnlineConfig, online_spec

PREFTUNE_API = 2


@dataclass
class GspoConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=gspo`."""

    group_size: int = number(8, above=1)
    """Completions for each prompt."""
    minibatches: int = 4
    """Optimizer updates that one pass over an iteration's rollouts is cut into (4 in the paper)."""
    kl_coef: float = 0.0
    """Weight of the KL to the reference (k3, mean over a completion's tokens), which the paper leaves out."""
    clip_range: float = 3e-4
    """Distance below 1 at which a completion's ratio is clipped (3e-4 in the paper)."""
    clip_range_high: float = number(4e-4, above=0)
    """Distance above 1 at which a completion's ratio is clipped (4e-4 in the paper)."""


@hookimpl
def register_stages():
    summary, paper = "group sequence policy optimisation, no critic", "Zheng et al. 2025, arXiv:2507.18071"
    return [online_spec("gspo", GspoConfig, "acme_gspo_stage:Gspo", summary, paper)]
