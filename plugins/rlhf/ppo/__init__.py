"""Settings of PPO. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import number
from plugins.online import ROLES, KlEstimator, OnlineConfig, online_spec


@dataclass
class PpoConfig(OnlineConfig):
    """Settings of `stage=rlhf algorithm=ppo`."""

    temperature: float = 1.0
    """Sampling temperature, the same in rollout and update (0.7 in the N+ study and lm-human-preferences)."""
    lr: float = 5e-6
    """Peak learning rate of the policy; for models of about 100M parameters (3e-6 in the N+ study, for 1B to 7B)."""
    batch_size: int = 8
    """Prompts in one iteration."""
    group_size: int = 8
    """Completions for each prompt; several cost little, since their prompt is computed once."""
    value_lr: float | None = number(5e-5, above=0, at_most=100)
    """Peak learning rate of the value model; the policy's when unset."""
    kl: KlEstimator = KlEstimator.k1
    """Estimator of the KL in the per-token reward; k1 after the N+ study (arXiv:2403.17031), k3 is never negative."""
    kl_target: float = number(0.0, at_least=0)
    """Adapt kl_coef towards this KL in nats a completion (Ziegler et al. 2019); 0 keeps it fixed."""
    kl_horizon: float = number(10000.0, above=0)
    """Episodes over which an adaptive kl_coef moves."""
    gamma: float = number(1.0, at_least=0, at_most=1)
    """Discount of rewards."""
    lam: float = number(0.95, at_least=0, at_most=1)
    """Bias-variance trade-off of GAE."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance, mean kept."""
    whiten_advantages: bool = True
    """Scale advantages to zero mean and unit variance over the iteration."""
    value_clip_range: float = number(0.2, at_least=0)
    """Values are clipped to this distance from the rollout's; 0 switches it off."""
    value_coef: float = number(0.1, above=0)
    """Weight of the value loss."""
    inner_epochs: int = 1
    """Passes over an iteration's rollouts (1 in InstructGPT, 4 in lm-human-preferences)."""
    minibatches: int = 2
    """Optimizer updates in one pass."""
    ptx_coef: float = number(0.0, at_least=0)
    """Weight of the demonstrations' log-likelihood mixed into each update (PPO-ptx; 27.8 in InstructGPT, whose loss
    is a mean over tokens of large batches)."""
    ptx_batch_size: int = number(8, above=0, at_most=1_000_000)
    """Demonstrations mixed into each update."""


SPEC = online_spec(
    "ppo", PpoConfig, "plugins.rlhf.ppo.stage:Ppo", "PPO with a critic and a learned or rule reward",
    "Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155",
    roles=(*ROLES, "value_model"), default=True,
)  # fmt: skip
