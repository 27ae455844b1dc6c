"""Models beside those of a run, named by a source of their own: frozen, for judging."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from core.errors import ModelError
from core.models.loading import load_module
from core.planning.sources import resolve_source
from core.settings.schema import ModelConfig
from core.tokens.codec import load_codec

if TYPE_CHECKING:
    from core.training.run import StageRun


class Guest:
    """A causal language model from `source`, and the engine that samples from a module's own weights on top of it.

    source: as model.source. max_sequence_tokens: the model's own context length.
    Raises: ConfigError or ModelError when it cannot be had.
    """

    def __init__(self, run: StageRun, source: str) -> None:
        cfg = ModelConfig(source=source)
        folder = resolve_source(cfg)
        self.codec = load_codec(folder, cfg)
        module = load_module(folder, run.cfg, run.dtype, "CAUSAL_LM").to(run.device).eval().requires_grad_(False)
        self.max_sequence_tokens = int(getattr(module.config, "max_position_embeddings", None) or cfg.max_length)
        name = run.sharing_engine()
        spec = run.registry.engines[name].spec
        stand_in = SimpleNamespace(models=SimpleNamespace(policy=SimpleNamespace(module=module)))
        self.engine = run.registry.resolve(spec)(spec.config(name=name), stand_in)

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
