"""Which transformers models predict the next token, read from their config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import ModelError


def read_config(folder: Path) -> Any | None:
    """The transformers config in a folder, or None where there is none that transformers knows by itself."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # the loading of the weights says what is wrong with it
        return None


def check_causal(config: Any, where: str = "") -> None:
    """Raise ModelError for a model that is by its kind no causal language model: an encoder, or an encoder with a
    decoder."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if hasattr(config, "auto_map"):
        return  # code of its own, whose forward pass the judge sees
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if getattr(config, "is_encoder_decoder", False):
        said = f"'{kind}' is an encoder with a decoder, which writes one text after reading another"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        said = f"'{kind}' is an encoder, which sees a text's later tokens and predicts masked ones"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        said = f"'{kind}' is no language model that transformers runs from left to right"
    else:
        return
    raise ModelError(
        f"{said}; policies, references and scorers need a causal language model",
        where or f"model type {kind}",
        "name a causal (decoder-only) language model",
    )
