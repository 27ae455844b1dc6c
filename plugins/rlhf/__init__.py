"""Reinforcement learning from human feedback: PPO, GRPO, RLOO and the DPO family. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import Schedule, StageConfig, StageSpec, hookimpl, require
from plugins.shared import KlEstimator


class Aggregation(str, Enum):
    """How GRPO averages token losses."""

    grpo = "grpo"
    dapo = "dapo"
    dr_grpo = "dr_grpo"


@dataclass
class OnlineConfig(StageConfig):
    """What PPO, GRPO and RLOO share: rollouts and the KL to the reference. `batch_size` counts prompts."""

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


@dataclass
class PpoConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=ppo`."""

    temperature: float = 0.7
    """Sampling temperature, the same in rollout and update (0.7 in the N+ study and lm-human-preferences)."""
    lr: float = 2e-5
    """Peak learning rate of the policy; for models of about 100M parameters (3e-6 in the N+ study, for 1B to 7B)."""
    batch_size: int = 8
    """Prompts in one iteration."""
    group_size: int = 8
    """Completions for each prompt; several cost little, since their prompt is computed once."""
    value_lr: float | None = 5e-5
    """Peak learning rate of the value model; the policy's when unset."""
    kl: KlEstimator = KlEstimator.k1
    """Estimator of the KL in the per-token reward; k1 after the N+ study (arXiv:2403.17031), k3 is never negative."""
    kl_target: float = 0.0
    """Adapt kl_coef towards this KL in nats a completion (Ziegler et al. 2019); 0 keeps it fixed."""
    kl_horizon: float = 10000.0
    """Episodes over which an adaptive kl_coef moves."""
    gamma: float = 1.0
    """Discount of rewards."""
    lam: float = 0.95
    """Bias-variance trade-off of GAE."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance, mean kept."""
    whiten_advantages: bool = True
    """Scale advantages to zero mean and unit variance over the iteration."""
    value_clip_range: float = 0.2
    """Values are clipped to this distance from the rollout's; 0 switches it off."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    inner_epochs: int = 1
    """Passes over an iteration's rollouts (1 in InstructGPT, 4 in lm-human-preferences)."""
    minibatches: int = 2
    """Optimizer updates in one pass."""
    ptx_coef: float = 0.0
    """Weight of the demonstrations' log-likelihood mixed into each update (PPO-ptx; 27.8 in InstructGPT, whose loss
    is a mean over tokens of large batches)."""
    ptx_batch_size: int = 8
    """Demonstrations mixed into each update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.value_lr is None or self.value_lr > 0, "stage.value_lr", "> 0", self.value_lr)
        require(self.kl_target >= 0, "stage.kl_target", ">= 0", self.kl_target)
        require(self.kl_horizon > 0, "stage.kl_horizon", "> 0", self.kl_horizon)
        require(0 <= self.gamma <= 1, "stage.gamma", "between 0 and 1", self.gamma)
        require(0 <= self.lam <= 1, "stage.lam", "between 0 and 1", self.lam)
        require(self.value_clip_range >= 0, "stage.value_clip_range", ">= 0", self.value_clip_range)
        require(self.value_coef > 0, "stage.value_coef", "> 0", self.value_coef)
        require(self.ptx_coef >= 0, "stage.ptx_coef", ">= 0", self.ptx_coef)
        require(self.ptx_batch_size > 0, "stage.ptx_batch_size", "> 0", self.ptx_batch_size)


@dataclass
class GrpoConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=grpo`."""

    lr: float = 1e-5
    """Peak learning rate (1e-6 in DeepSeekMath, for 7B)."""
    batch_size: int = 8
    """Prompts in one iteration."""
    group_size: int = 8
    """Completions for each prompt (64 in DeepSeekMath)."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    kl_coef: float = 0.04
    """Weight of the k3 penalty in the loss (0.04 in DeepSeekMath)."""
    scale_by_std: bool = True
    """Divide by the group's standard deviation; false is Dr. GRPO (arXiv:2503.20783)."""
    aggregation: Aggregation = Aggregation.grpo
    """grpo: mean a sequence, then over sequences; dapo: all tokens alike; dr_grpo: sum over max_new_tokens."""
    clip_range_high: float | None = None
    """Upper bound apart from clip_range (0.28 in DAPO, arXiv:2503.14476); clip_range when unset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size > 1, "stage.group_size", "> 1", self.group_size)
        require(
            self.clip_range_high is None or self.clip_range_high > 0,
            "stage.clip_range_high",
            "> 0",
            self.clip_range_high,
        )


@dataclass
class RlooConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=rloo`."""

    lr: float = 1e-5
    """Peak learning rate."""
    batch_size: int = 16
    """Prompts in one iteration."""
    group_size: int = 4
    """Completions for each prompt (2 and 4 in the paper)."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass; the rest of an update is accumulated."""
    kl_coef: float = 0.03
    """Weight of the sequence KL subtracted from the reward (0.03 in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size > 1, "stage.group_size", "> 1", self.group_size)


@dataclass
class PairwiseConfig(StageConfig):
    """What the DPO family shares. `batch_size` counts pairs."""

    lr: float = 1e-6
    """Peak learning rate (5e-7 to 1e-6 for whole models; about 1e-4 with adapters)."""
    beta: float = 0.1
    """Temperature: how strongly the policy is held to the reference (0.1 to 0.5)."""
    warmup_frac: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "stage.beta", "> 0", self.beta)


@dataclass
class SmoothedConfig(PairwiseConfig):
    """Settings of `algorithm=cdpo` and `algorithm=robust`."""

    label_smoothing: float = 0.1
    """Assumed share of wrong labels, below 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_smoothing < 0.5, "stage.label_smoothing", "in [0, 0.5)", self.label_smoothing)


@dataclass
class IpoConfig(PairwiseConfig):
    """Settings of `algorithm=ipo`."""

    average: bool = True
    """Average log-probabilities over tokens, as its authors do; false sums them, as in the DPO repository."""


_ONLINE = ("policy", "reference", "reward_model")


def _online(
    algorithm: str, config: type[StageConfig], impl: str, summary: str, paper: str, **more: object
) -> StageSpec:
    return StageSpec(
        name="rlhf", algorithm=algorithm, config=config, impl=impl, summary=summary, paper=paper, data="prompts",
        after={"policy": "sft", "reward_model": "reward"}, rollouts=True, **{"roles": _ONLINE, **more},  # type: ignore[arg-type]
    )  # fmt: skip


def _pairwise(algorithm: str, config: type[StageConfig], summary: str, paper: str) -> StageSpec:
    return StageSpec(
        name="rlhf", algorithm=algorithm, config=config, impl="plugins.rlhf.pairwise:Pairwise", summary=summary,
        paper=paper, data="preference", roles=("policy", "reference"), after={"policy": "sft"},
    )  # fmt: skip


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `rlhf` in its variants."""
    return [
        _online("ppo", PpoConfig, "plugins.rlhf.ppo:Ppo", "PPO with a critic and a learned or rule reward",
                "Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155",
                default=True, roles=(*_ONLINE, "value_model")),
        _online("grpo", GrpoConfig, "plugins.rlhf.group:Grpo", "group-relative policy optimisation, no critic",
                "Shao et al. 2024, arXiv:2402.03300"),
        _online("rloo", RlooConfig, "plugins.rlhf.group:Rloo", "REINFORCE with a leave-one-out baseline",
                "Ahmadian et al. 2024, arXiv:2402.14740"),
        _pairwise("dpo", PairwiseConfig, "direct preference optimisation", "Rafailov et al. 2023, arXiv:2305.18290"),
        _pairwise("cdpo", SmoothedConfig, "DPO with conservative labels", "Mitchell 2023"),
        _pairwise("robust", SmoothedConfig, "DPO unbiased under label noise", "Chowdhury 2024, arXiv:2403.00409"),
        _pairwise("ipo", IpoConfig, "identity preference optimisation", "Azar et al. 2023, arXiv:2310.12036"),
    ]  # fmt: skip
