"""Supervised fine-tuning: its settings, which other supervised stages extend. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import ConfigError, StageConfig, StageSpec, TooLong, TrainOn, hookimpl, require

__all__ = ["SftConfig"]

_ROLES = ("system", "user", "assistant", "tool")


@dataclass
class SftConfig(StageConfig):
    """Settings of `stage=sft`: what is trained, and how the loss is regularised."""

    lr: float = 2e-5
    """Peak learning rate (2e-5 in Alpaca and Vicuna)."""
    epochs: float = 2.0
    """Passes over the demonstrations (3 in Alpaca and Vicuna)."""
    train_on: TrainOn = TrainOn.last
    """Turns with a weight: the `last` one, every `assistant` turn, or `all` tokens. Weights in the data win."""
    role_weights: dict[str, float] = field(default_factory=dict)
    """Weight of the turns of a role, e.g. `{assistant: 1, user: 0.1}`; weights in the data win."""
    too_long: TooLong = TooLong.drop
    """A row over model.max_length is dropped (quarantine), or cut at its end or its start."""
    neftune_alpha: float = 0.0
    """Noise on the input embeddings in training (NEFTune; 5 in the paper); 0 is none."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, weight in self.role_weights.items():
            if role not in _ROLES:
                raise ConfigError(
                    f"'stage.role_weights' names '{role}', which is no role", mend=f"use one of {', '.join(_ROLES)}"
                )
            require(weight >= 0, f"stage.role_weights.{role}", ">= 0", weight)
        require(self.neftune_alpha >= 0, "stage.neftune_alpha", ">= 0", self.neftune_alpha)
        require(0 <= self.label_smoothing < 1, "stage.label_smoothing", "in [0, 1)", self.label_smoothing)


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `sft`."""
    return [
        StageSpec(
            name="sft",
            config=SftConfig,
            impl="plugins.sft.stage:Sft",
            data="sft",
            summary="supervised fine-tuning: completion tokens and the end of turn have weight 1",
        )
    ]
