"""Parameter-efficient tuning: from a method's peft name to an adapted model, and from there to plain merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ModelError
from core.schema import PeftConfig, Quant

_SYNONYMS = {
    "r": ("r", "init_r", "rank", "n_frequency"),
    "alpha": ("lora_alpha", "alpha", "ia3_alpha"),
    "dropout": ("lora_dropout", "rank_dropout", "module_dropout", "vera_dropout", "vblora_dropout", "hidden_dropout"),
}
"""Our word to the names that peft's methods give it; the first that the method has is taken."""

_DEFAULT_VIRTUAL_TOKENS = 20


def add_adapter(module: nn.Module, cfg: PeftConfig, task: str, total_steps: int) -> nn.Module:
    """The model with a fresh adapter; everything else frozen.

    task: "CAUSAL_LM" or "SEQ_CLS" (whose scoring head trains too).
    Raises ConfigError for a method that peft does not have or a field that the method does not know.
    """
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if cfg.method not in classes:
        raise ConfigError(f"peft has no method '{cfg.method}'", "peft.method", f"one of: {', '.join(sorted(classes))}")
    config_class = classes[cfg.method]
    known = {item.name for item in fields(config_class)}
    options: dict[str, Any] = dict(cfg.options)
    for word, names in _SYNONYMS.items():
        value = getattr(cfg, word)
        if value is None:
            continue
        name = next((name for name in names if name in known), None)
        if name is None:
            raise ConfigError(f"the method '{cfg.method}' has no {word}", f"peft.{word}", "leave it unset")
        options.setdefault(name, type(value)(value))
    if cfg.targets and "target_modules" in known:
        options.setdefault("target_modules", cfg.targets[0] if cfg.targets == ["all-linear"] else list(cfg.targets))
    if "num_virtual_tokens" in known:
        options.setdefault("num_virtual_tokens", _DEFAULT_VIRTUAL_TOKENS)
    if "total_step" in known:
        options.setdefault("total_step", max(total_steps, 1))
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"the method '{cfg.method}' has no field '{unknown[0]}'",
            "peft.options",
            f"one of: {', '.join(sorted(known))}",
        )
    try:
        return get_peft_model(module, config_class(task_type=task, **options), autocast_adapter_dtype=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"peft could not add '{cfg.method}': {error}".splitlines()[0],
            "peft",
            "see peft's own limits for the method",
        ) from error


def quantization_config(quant: Quant, compute: torch.dtype) -> Any | None:
    """bitsandbytes config for loading frozen base weights, or None."""
    if quant is Quant.none:
        return None
    from transformers import BitsAndBytesConfig

    if quant is Quant.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def merged_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of the plain model with the adapter merged in, one by one, under their plain names.

    The module itself is left bit for bit as it was: a merged layer gets its stashed weight back, since merging and
    unmerging in bf16 would not return to the start. Quantized layers are dequantized first.
    Raises ModelError for prompt methods, which no weight can express.
    """
    if not hasattr(module, "get_base_model"):
        yield from ((name, tensor.detach()) for name, tensor in module.named_parameters())
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if getattr(module.active_peft_config, "is_prompt_learning", False):
        raise ModelError("a prompt method changes no weight and cannot be merged", "peft.method")
    base = module.get_base_model()  # type: ignore[operator]
    done: set[str] = set()
    for path, layer in base.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(layer, ModulesToSaveWrapper):
            saved = layer.modules_to_save[layer.active_adapters[0]]
            done.add(prefix)
            yield from ((prefix + name, tensor.detach()) for name, tensor in saved.named_parameters())
        elif isinstance(layer, BaseTunerLayer):
            done.add(prefix)
            yield from ((prefix + name, tensor) for name, tensor in _merged_layer(layer))
    for name, tensor in base.named_parameters():
        if not any(name.startswith(prefix) for prefix in done):
            yield name, tensor.detach()


def _merged_layer(layer: Any) -> Iterator[tuple[str, Tensor]]:
    inner = layer.get_base_layer()
    with torch.no_grad():
        if type(inner).__module__.startswith("bitsandbytes"):
            yield "weight", _dequantized(inner) + layer.get_delta_weight(layer.active_adapters[0])
            if inner.bias is not None:
                yield "bias", inner.bias.detach()
            return
        stash = {name: tensor.detach().clone() for name, tensor in inner.named_parameters()}
        layer.merge()
        merged = {name: tensor.detach().clone() for name, tensor in inner.named_parameters()}
        for name, tensor in inner.named_parameters():
            tensor.data.copy_(stash[name])
        layer.merged_adapters.clear()
    yield from merged.items()


def _dequantized(layer: Any) -> Tensor:
    import bitsandbytes as bnb

    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data.float() * (weight.SCB / 127.0)[:, None]
