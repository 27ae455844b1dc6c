"""Settings of RLOO. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import number
from plugins.online import OnlineConfig, online_spec


@dataclass
class RlooConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=rloo`."""

    lr: float = 1e-5
    """Peak learning rate."""
    batch_size: int = 16
    """Prompts in one iteration."""
    group_size: int = number(4, above=1, at_most=100_000)
    """Completions for each prompt (2 and 4 in the paper)."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    kl_coef: float = 0.03
    """Weight of the sequence KL subtracted from the reward (0.03 in the paper)."""


SPEC = online_spec(
    "rloo", RlooConfig, "plugins.rlhf.rloo.stage:Rloo", "REINFORCE with a leave-one-out baseline",
    "Ahmadian et al. 2024, arXiv:2402.14740",
)  # fmt: skip
