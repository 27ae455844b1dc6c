"""What makes LoRA-FA of LoRA. Imports torch."""

from __future__ import annotations

from torch import nn

from core.api import PeftConfig


def freeze_a(module: nn.Module, config: PeftConfig) -> None:
    """Freeze the factors A, [r, in]; B, [out, r], starts at zero, so the model starts as it was named.

    The saved adapter is an ordinary LoRA.
    """
    del config
    for name, parameter in module.named_parameters():
        if ".lora_A." in name or ".lora_embedding_A." in name:
            parameter.requires_grad_(False)
