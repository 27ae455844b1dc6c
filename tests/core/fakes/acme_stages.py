"""A plugin for tests: two stages, one of them with variants, and one part of each other kind. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import (
    DataSourceSpec,
    EngineSpec,
    RewardConfig,
    RewardSpec,
    RolloutConfig,
    StageConfig,
    StageSpec,
    TrackerConfig,
    TrackerSpec,
    hookimpl,
    require,
)


@dataclass
class Mix:
    """A nested part."""

    nll_weight: float = 1.0
    """Share of the likelihood term."""

    def __post_init__(self) -> None:
        require(self.nll_weight >= 0, "stage.mix.nll_weight", ">= 0", self.nll_weight)


@dataclass
class Sft(StageConfig):
    """A stage without variants."""

    lam: float = 0.1
    """Weight of the odds ratio."""
    mix: Mix = field(default_factory=Mix)
    """What is mixed."""
    weights: dict[str, float] = field(default_factory=dict)
    """Any names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam > 0, "stage.lam", "> 0", self.lam)


@dataclass
class Online(StageConfig):
    """A variant with rollouts."""

    kl_coef: float = 0.1
    """Weight of the penalty, in score per nat."""


@dataclass
class Offline(StageConfig):
    """A variant without rollouts."""

    beta: float = 0.1
    """Temperature."""


@dataclass
class Rules(RewardConfig):
    """A reward model with a setting."""

    pattern: str = "x"
    """What is looked for."""


@hookimpl
def register_stages() -> list[StageSpec]:
    online = {"config": Online, "impl": "acme_impl:Stage", "data": "prompts", "rollouts": True}
    return [
        StageSpec("sft", Sft, "acme_impl:Stage", "sft", summary="Fine-tunes", requires=("acme_impl",)),
        StageSpec("rlhf", algorithm="ppo", default=True, summary="Online", paper="arXiv:0000.00000", **online),
        StageSpec("rlhf", Offline, "acme_impl:Stage", "preference", algorithm="dpo", after={"policy": "sft"}),
    ]


@hookimpl
def register_reward_models() -> list[RewardSpec]:
    return [
        RewardSpec("learned", RewardConfig, "acme_impl:build"),
        RewardSpec("rules", Rules, "acme_impl:build", summary="Looks for a pattern"),
    ]


@hookimpl
def register_rollout_engines() -> list[EngineSpec]:
    return [EngineSpec(name, RolloutConfig, "acme_impl:build") for name in ("vllm", "transformers")]


@hookimpl
def register_trackers() -> list[TrackerSpec]:
    return [TrackerSpec("wandb", TrackerConfig, "acme_impl:Tracker")]


@hookimpl
def register_data_sources() -> list[DataSourceSpec]:
    return [DataSourceSpec("demo", "acme_impl:write", version="1")]
