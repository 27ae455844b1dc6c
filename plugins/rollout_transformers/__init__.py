"""Rollouts by the policy module itself: no copy of the weights, works wherever transformers does."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import EngineSpec, RolloutConfig, hookimpl, number


@dataclass
class TransformersRolloutConfig(RolloutConfig):
    """Options of `rollout=transformers`."""

    batch_tokens: int = number(16384, above=0)
    """Most key-value entries (rows × (prompt + new tokens), padding included) decoded at once."""
    compact_frac: float = number(0.75, at_least=0, at_most=1)
    """Finished rows leave the batch when at most this share of its rows still runs; 0 keeps them to the end."""


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
