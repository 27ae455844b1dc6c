"""Optimizers: AdamW, AdamW with its state in 8 bits, Adafactor. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import OptimizerConfig, OptimizerSpec, hookimpl, require


@dataclass
class AdamWConfig(OptimizerConfig):
    """Settings of `optimizer=adamw`."""

    beta1: float = 0.9
    """First moment decay."""
    beta2: float = 0.95
    """Second moment decay."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        require(0 <= self.beta1 < 1, "optimizer.beta1", "in [0, 1)", self.beta1)
        require(0 <= self.beta2 < 1, "optimizer.beta2", "in [0, 1)", self.beta2)
        require(self.eps > 0, "optimizer.eps", "> 0", self.eps)


@dataclass
class AdamW8bitConfig(AdamWConfig):
    """Settings of `optimizer=adamw8bit`."""

    min_values: int = 4096
    """Parameters with fewer values keep fp32 moments."""


@dataclass
class AdafactorConfig(OptimizerConfig):
    """Settings of `optimizer=adafactor`."""

    decay: float = -0.8
    """Exponent of the second moment's decay: it is 1 - step ** decay."""
    clip: float = 1.0
    """A matrix's update is scaled down to this root mean square."""
    eps: float = 1e-3
    """Least root mean square of a parameter: the rate is relative to it."""

    def __post_init__(self) -> None:
        require(self.decay <= 0, "optimizer.decay", "<= 0", self.decay)
        require(self.clip >= 1, "optimizer.clip", ">= 1", self.clip)
        require(self.eps > 0, "optimizer.eps", "> 0", self.eps)


@hookimpl
def register_optimizers() -> list[OptimizerSpec]:
    """The three."""
    return [
        OptimizerSpec(
            "adamw", AdamWConfig, "plugins.optimizers.built:adamw",
            "Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)",
        ),
        OptimizerSpec(
            "adamw8bit", AdamW8bitConfig, "plugins.optimizers.built:adamw8bit",
            "AdamW with block-wise quantised moments (Dettmers et al. 2022, arXiv:2110.02861)",
            state_bytes=2.0, requires=("bitsandbytes",),
        ),
        OptimizerSpec(
            "adafactor", AdafactorConfig, "plugins.optimizers.built:adafactor",
            "second moments by rows and columns (Shazeer and Stern 2018, arXiv:1804.04235)", state_bytes=0.0,
        ),
    ]  # fmt: skip
