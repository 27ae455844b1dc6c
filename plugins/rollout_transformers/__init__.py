"""Rollouts by the policy module itself: no copy of the weights, works wherever transformers does."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import EngineSpec, RolloutConfig, hookimpl, require


@dataclass
class TransformersRolloutConfig(RolloutConfig):
    """Options of `rollout=transformers`."""

    batch_tokens: int = 16384
    """Most key-value entries (rows × (prompt + new tokens), padding included) decoded at once."""
    compact_frac: float = 0.75
    """Finished rows leave the batch when at most this share of its rows still runs; 0 keeps them to the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_tokens > 0, "rollout.batch_tokens", "> 0", self.batch_tokens)
        require(0 <= self.compact_frac <= 1, "rollout.compact_frac", "between 0 and 1", self.compact_frac)


@hookimpl
def register_rollout_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="transformers",
            config=TransformersRolloutConfig,
            impl="plugins.rollout_transformers.engine:build",
            summary="samples with the policy module itself; always there, no second copy of the weights",
            shares_policy=True,
            requires=("transformers",),
        )
    ]
