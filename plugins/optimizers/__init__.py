"""Optimizers: AdamW, AdamW with its state in 8 bits, Adafactor. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import OptimizerConfig, OptimizerSpec, hookimpl, number


@dataclass
class AdamWConfig(OptimizerConfig):
    """Settings of `optimizer=adamw`."""

    beta1: float = number(0.9, at_least=0, below=1)
    """First moment decay."""
    beta2: float = number(0.95, at_least=0, below=1)
    """Second moment decay."""
    eps: float = number(1e-8, above=0, at_most=1)
    """Added to the root of the second moment."""


@dataclass
class AdamW8bitConfig(AdamWConfig):
    """Settings of `optimizer=adamw8bit`."""

    min_values: int = number(4096, at_least=0)
    """Parameters with fewer values keep fp32 moments."""


@dataclass
class AdafactorConfig(OptimizerConfig):
    """Settings of `optimizer=adafactor`."""

    decay: float = number(-0.8, at_least=-10, at_most=0)
    """Exponent of the second moment's decay: it is 1 - step ** decay."""
    clip: float = number(1.0, at_least=1)
    """A matrix's update is scaled down to this root mean square."""
    eps: float = number(1e-3, above=0, at_most=1)
    """Least root mean square of a parameter: the rate is relative to it."""


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
