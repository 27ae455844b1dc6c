"""Models beside those of a run, named by a source of their own: frozen, for judging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.models.checkpoint import stored_tensors, weight_files
from core.models.loading import load_module, named
from core.models.start import Start
from core.planning.sources import resolve_source
from core.settings.schema import ModelConfig
from core.tokens.tokenizer_files import load_tokenizer
from core.types import RolloutEngine


class Guest:
    """A causal language model from a source of its own, and the engine that samples from its weights.

    start: that of the guest, its source as model.source. build: makes an engine on top of a module's own weights.
    max_sequence_tokens: the model's own context length.
    Raises: ConfigError or ModelError when it cannot be had.
    """

    def __init__(self, start: Start, build: Callable[[Start, nn.Module], RolloutEngine]) -> None:
        self.codec = start.codec
        module = load_module(start.folder, start.cfg, start.dtype, "CAUSAL_LM")
        module = module.to(start.device).eval().requires_grad_(False)
        self.max_sequence_tokens = int(getattr(module.config, "max_position_embeddings", None) or start.max_length)
        self.engine = build(start, module)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()


def plain_body(source: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(body, tokenizer): a transformers model without head, encoder or decoder, frozen and in eval mode.

    source: as model.source. Raises: ConfigError or ModelError when it cannot be had; no remote code runs.
    """
    from transformers import AutoModel

    folder = resolve_source(ModelConfig(source=source))
    tokenizer = load_tokenizer(folder)
    with named(folder):
        stored_tensors(weight_files(folder))
        body, info = AutoModel.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, attn_implementation=None,
            output_loading_info=True,
        )  # fmt: skip
        # A pooling head that nobody reads may lack, as in checkpoints of encoders.
        if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name.split(".")):
            raise ModelError(f"the weights are not those of the model: '{missing[0]}' is missing", str(folder))
    return body.to(device).eval().requires_grad_(False), tokenizer
