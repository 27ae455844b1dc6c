"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): LoRA whose down projection A stays as it was drawn. Torch-free."""

from __future__ import annotations

from core.api import PeftMethodSpec, hookimpl


@hookimpl
def register_peft_methods() -> list[PeftMethodSpec]:
    """The method."""
    return [
        PeftMethodSpec(
            "lora_fa", "lora", "plugins.lora_fa.shape:freeze_a", "LoRA with a frozen A: half of its trained parameters"
        )
    ]
