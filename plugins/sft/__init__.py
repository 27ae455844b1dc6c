"""Supervised fine-tuning: its settings, which other supervised stages extend. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import ConfigError, StageConfig, StageSpec, TooLong, TrainOn, hookimpl, number

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
    role_weights: dict[str, float] = number(dict, at_least=0)
    """Weight of the turns of a role, e.g. `{assistant: 1, user: 0.1}`; weights in the data win."""
    too_long: TooLong = TooLong.drop
    """A row over model.max_length is dropped (quarantine), or cut at its end or its start."""
    neftune_alpha: float = number(0.0, at_least=0)
    """Noise on the input embeddings in training (NEFTune; 5 in the paper); 0 is none."""
    label_smoothing: float = number(0.0, at_least=0, below=1)
    """Share of each target that is spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for role in self.role_weights:
            if role not in _ROLES:
                raise ConfigError(
                    f"'stage.role_weights' names '{role}', which is no role", mend=f"use one of {', '.join(_ROLES)}"
                )


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
