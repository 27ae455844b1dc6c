"""What algorithms on the policy's own completions share, for those here and for those of other packages: settings,
rollouts, estimators, groups.

This module is torch-free: settings extend OnlineConfig, and `online_spec` describes an algorithm of stage=rlhf.
`plugins.online.rollouts` samples, `plugins.online.estimators` has the formulas, `plugins.online.group` is the base of
algorithms whose baseline is the group of completions itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import Schedule, StageConfig, StageSpec, Work, number, require

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
    group_size: int = number(1, above=0, at_most=100_000)
    """Completions for each prompt."""
    max_new_tokens: int = number(64, above=0, at_most=1_000_000)
    """Longest completion in tokens."""
    temperature: float = number(1.0, above=0, at_most=100)
    """Sampling temperature, the same in rollout and update."""
    top_p: float = number(1.0, above=0, at_most=1)
    """Nucleus of the rollout; the update sees the whole distribution, so keep 1 unless you know why."""
    kl_coef: float = number(0.05, at_least=0)
    """Weight of the KL to the reference."""
    missing_eos_score: float = number(-2.0)
    """Score of a completion that did not end by itself, in place of the reward model's, which has never seen a cut
    text (-1 in the N+ study)."""
    minibatches: int = number(1, above=0, at_most=1_000_000)
    """Optimizer updates that one pass over an iteration's rollouts is cut into."""
    inner_epochs: int = number(1, above=0, at_most=1_000_000)
    """Passes over an iteration's rollouts."""
    micro_batch_tokens: int = 512
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    clip_range: float = number(0.2, above=0)
    """The ratio is clipped to 1 - clip_range … 1 + clip_range."""
    stop_kl: float = number(0.0, at_least=0)
    """An iteration's remaining updates are skipped when the mean KL between the policy before and during the updates
    exceeds this, in nats a token; 0 never."""
    max_kl: float = number(0.0, at_least=0)
    """The run ends when the KL to the reference exceeds this, in nats a completion; 0 never."""
    importance_cap: float | None = number(2.0, at_least=1)
    """Truncation of the weight p_trainer / p_engine that corrects the engines' precision gap; null leaves the weight at
    1."""
    schedule: Schedule = Schedule.constant
    """Shape of the learning rate after warm-up."""
    save_every_steps: int = 10
    """A checkpoint every so many iterations; 0 means none."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
