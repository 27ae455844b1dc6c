"""The optimizers themselves, as torch and bitsandbytes have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from plugins.optimizers import AdafactorConfig, AdamW8bitConfig, AdamWConfig


def adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's fused AdamW."""
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def adamw8bit(config: AdamW8bitConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW: moments in 8 bits, scaled by blocks of 256 values."""
    import bitsandbytes as bnb

    made: torch.optim.Optimizer = bnb.optim.AdamW8bit(
        groups, betas=(config.beta1, config.beta2), eps=config.eps, min_8bit_size=config.min_values
    )
    return made


def adafactor(config: AdafactorConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's Adafactor: no first moment, and a rate relative to the size of each parameter, so that `stage.lr` is to
    be larger than for AdamW (torch's own default is 0.01)."""
    return torch.optim.Adafactor(groups, beta2_decay=config.decay, eps=(None, config.eps), d=config.clip)
