"""What algorithms on the policy's own completions share, for those here and for those of other packages: settings,
rollouts, estimators, groups.

This module is torch-free: settings extend OnlineConfig, and `online_spec` describes an algorithm of stage=rlhf.
`plugins.online.rollouts` samples, `plugins.online.estimators` has the formulas, `plugins.online.group` is the base of
algorithms whose baseline is the group of completions itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import Schedule, StageConfig, StageSpec, Work, require

__all__ = ["ROLES", "KlEstimator", "OnlineConfig", "online_spec"]

ROLES = ("policy", "reference", "reward_model")
"""Models of an algorithm without a critic."""


class KlEstimator(str, Enum):
    """Estimator of KL(policy || reference) from one sample, with d = logprob - reference_logprob."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


@dataclass
class OnlineConfig(StageConfig):
    """What online algorithms share: rollouts and the KL to the reference. `batch_size` counts prompts."""

    batch_size: int = 32
    """Prompts in one iteration."""
    group_size: int = 1
    """Completions for each prompt."""
    max_new_tokens: int = 64
    """Longest completion in tokens."""
    temperature: float = 1.0
    """Sampling temperature, the same in rollout and update."""
    top_p: float = 1.0
    """Nucleus of the rollout; the update sees the whole distribution, so keep 1 unless you know why."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference."""
    missing_eos_score: float = -2.0
    """Score of a completion that did not end by itself, in place of the reward model's, which has never seen a cut
    text (-1 in the N+ study)."""
    minibatches: int = 1
    """Optimizer updates that one pass over an iteration's rollouts is cut into."""
    inner_epochs: int = 1
    """Passes over an iteration's rollouts."""
    micro_batch_tokens: int = 512
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    clip_range: float = 0.2
    """The ratio is clipped to 1 - clip_range … 1 + clip_range."""
    stop_kl: float = 0.0
    """An iteration's remaining updates are skipped when the mean KL between the policy before and during the updates
    exceeds this, in nats a token; 0 never."""
    max_kl: float = 0.0
    """The run ends when the KL to the reference exceeds this, in nats a completion; 0 never."""
    importance_cap: float = 2.0
    """Truncation of the weight p_trainer / p_engine that corrects the engines' precision gap; 0 switches it off."""
    schedule: Schedule = Schedule.constant
    """Shape of the learning rate after warm-up."""
    save_every_steps: int = 10
    """A checkpoint every so many iterations; 0 means none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size > 0, "stage.group_size", "> 0", self.group_size)
        require(self.max_new_tokens > 0, "stage.max_new_tokens", "> 0", self.max_new_tokens)
        require(self.temperature > 0, "stage.temperature", "> 0", self.temperature)
        require(0 < self.top_p <= 1, "stage.top_p", "in (0, 1]", self.top_p)
        require(self.kl_coef >= 0, "stage.kl_coef", ">= 0", self.kl_coef)
        require(self.minibatches > 0, "stage.minibatches", "> 0", self.minibatches)
        require(self.inner_epochs > 0, "stage.inner_epochs", "> 0", self.inner_epochs)
        require(self.clip_range > 0, "stage.clip_range", "> 0", self.clip_range)
        require(self.stop_kl >= 0, "stage.stop_kl", ">= 0", self.stop_kl)
        require(self.max_kl >= 0, "stage.max_kl", ">= 0", self.max_kl)
        require(self.importance_cap >= 0, "stage.importance_cap", ">= 0", self.importance_cap)
        require(self.minibatches <= self.batch_size, "stage.minibatches", "<= batch_size", self.minibatches)

    def work(self) -> Work:
        """Completions of each prompt, and the passes over them."""
        return Work(self.group_size, self.max_new_tokens, self.inner_epochs)


def online_spec(
    algorithm: str,
    config: type[OnlineConfig],
    impl: str,
    summary: str,
    paper: str,
    roles: tuple[str, ...] = ROLES,
    default: bool = False,
) -> StageSpec:
    """An algorithm of stage=rlhf that trains on prompts; where no model is named, stages before it make them."""
    return StageSpec(
        name="rlhf", algorithm=algorithm, config=config, impl=impl, summary=summary, paper=paper, data="prompts",
        roles=roles, default=default, after={"policy": "sft", "reward_model": "reward"}, rollouts=True,
    )  # fmt: skip
