"""Settings of GRPO. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import number
from plugins.online import OnlineConfig, online_spec


class Aggregation(str, Enum):
    """How GRPO averages token losses."""

    grpo = "grpo"
    dapo = "dapo"
    dr_grpo = "dr_grpo"


@dataclass
class GrpoConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=grpo`."""

    lr: float = 1e-5
    """Peak learning rate (1e-6 in DeepSeekMath, for 7B)."""
    batch_size: int = 8
    """Prompts in one iteration."""
    group_size: int = number(8, above=1, at_most=100_000)
    """Completions for each prompt (64 in DeepSeekMath)."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    kl_coef: float = 0.04
    """Weight of the k3 penalty in the loss (0.04 in DeepSeekMath)."""
    scale_by_std: bool = True
    """Divide by the group's standard deviation; false is Dr. GRPO (arXiv:2503.20783)."""
    aggregation: Aggregation = Aggregation.grpo
    """grpo: mean a sequence, then over sequences; dapo: all tokens alike; dr_grpo: sum over max_new_tokens."""
    clip_range_high: float | None = number(None, above=0)
    """Upper bound apart from clip_range (0.28 in DAPO, arXiv:2503.14476); clip_range when unset."""


SPEC = online_spec(
    "grpo", GrpoConfig, "plugins.rlhf.grpo.stage:Grpo", "group-relative policy optimisation, no critic",
    "Shao et al. 2024, arXiv:2402.03300",
)  # fmt: skip
