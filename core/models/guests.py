"""Models beside those of a run, named by a source of their own: frozen, for judging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.models.loading import load_module
from core.models.start import Start
from core.planning.sources import resolve_source
from core.settings.schema import ModelConfig
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
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_source(ModelConfig(source=source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        body = AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise whatever they like for a damaged file
        raise ModelError(
            f"the model could not be loaded: {type(error).__name__}: {error}".splitlines()[0], str(folder),
            "name a folder or hub id in transformers' format with safetensors weights",
        ) from error  # fmt: skip
    return body.to(device).eval().requires_grad_(False), tokenizer
