"""Supervised fine-tuning on demonstrations. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import StageSpec, hookimpl
from plugins.shared.supervised_config import SupervisedConfig


@dataclass
class SftConfig(SupervisedConfig):
    """Settings of `stage=sft`."""

    lr: float = 2e-5
    """Peak learning rate (2e-5 in Alpaca and Vicuna)."""
    epochs: float = 2.0
    """Passes over the demonstrations (3 in Alpaca and Vicuna)."""


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
