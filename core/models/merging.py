"""From an adapted model to the weights of a plain one, under the names that memory, files and engines have for them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.adapters import base_model, is_prompt_learning


def merged_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and saved buffers of the plain model with the adapter merged in, one by one, under their names in memory;
    tied ones once.

    The module itself is left bit for bit as it was: a merged layer gets its stashed weight back, since merging and
    unmerging in bf16 would not return to the start. Quantized layers are dequantized first.
    Raises ModelError for prompt methods, which no weight can express.
    """
    if not hasattr(module, "get_base_model"):
        yield from _own_tensors(module)
        return
    # An adapter may hold a tied layer twice; that it keeps the two equal was checked when it was made.
    tied = getattr(module.get_base_model(), "all_tied_weights_keys", {})  # type: ignore[operator]
    yield from ((name, tensor) for name, tensor in _merged_tensors(module) if name not in tied)


def _merged_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import TrainableTokensWrapper

    if is_prompt_learning(module):
        raise ModelError("a prompt method changes no weight and cannot be merged", "peft.method")
    base = module.get_base_model()  # type: ignore[operator]
    done: list[str] = []
    for path, layer in base.named_modules():
        prefix = f"{path}." if path else ""
        if any(prefix.startswith(outer) for outer in done):
            continue
        if isinstance(layer, ModulesToSaveWrapper):
            saved = layer.modules_to_save[layer.active_adapters[0]]
            done.append(prefix)
            yield from ((prefix + name, tensor) for name, tensor in _own_tensors(saved))
        elif is_quantized(layer):
            done.append(prefix)
            plain = _plain_linear(layer)
            yield from ((prefix + name, tensor.detach().to(base.dtype)) for name, tensor in plain.named_parameters())
        elif isinstance(layer, (BaseTunerLayer, TrainableTokensWrapper)):
            done.append(prefix)
            tuner = layer.token_adapter if isinstance(layer, TrainableTokensWrapper) else layer
            yield from ((prefix + name, tensor) for name, tensor in _merged_layer(tuner, base.dtype, path))
    for name, tensor in _own_tensors(base):
        if not any(name.startswith(prefix) for prefix in done):
            yield name, tensor


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, a tied one once, and the buffers that are saved beside them, by name."""
    yield from ((name, tensor.detach()) for name, tensor in module.named_parameters())
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer.detach()


def checkpoint_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`merged_weights` under the names, and in the pieces, in which the model's checkpoint holds them: what engines and
    files take. In memory transformers names some families' tensors otherwise, and stacks those of experts.

    Where names differ, all merged weights stand in memory at once.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    base = base_model(module)
    if not isinstance(base, PreTrainedModel) or getattr(base, "_weight_conversions", None) == []:
        yield from merged_weights(module)
        return
    yield from revert_weight_conversion(base, dict(merged_weights(module))).items()


def _merged_layer(layer: Any, dtype: torch.dtype, path: str) -> Iterator[tuple[str, Tensor]]:
    """Merged tensors of one adapted layer, from a twin of it that is thrown away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = layer.get_base_layer()
    quantized = is_quantized(inner)
    with torch.no_grad():
        # The memo puts a plain layer in the place of a quantized one.
        twin = copy.deepcopy(layer, {id(inner): _plain_linear(inner)} if quantized else None)
        if quantized:
            _forget_quantization(twin)
        try:
            for part in twin.modules():  # one wrapper around the other, where a layer has several parameters
                if isinstance(part, BaseTunerLayer):
                    part.merge()
        except (NotImplementedError, ValueError) as error:
            raise ModelError(f"this adapter cannot be merged: {error}".splitlines()[0], path, MERGE_MEND) from error
        merged = dict(_own_tensors(twin.get_base_layer()))
    yield from ((name, tensor.to(dtype) if quantized else tensor) for name, tensor in merged.items())


MERGE_MEND = "keep the adapter apart: peft.merge=false, rollout=transformers, and no stage after this one"


def is_quantized(layer: nn.Module) -> bool:
    """Whether bitsandbytes holds the layer's weight."""
    return type(layer).__module__.startswith("bitsandbytes")


def _forget_quantization(twin: Any) -> None:
    """Make an adapted layer, whose base was replaced by a plain one, the class that peft has for plain layers."""
    package, _, module = type(twin).__module__.rpartition(".")
    if module == "bnb":
        plain = importlib.import_module(f"{package}.layer")
        twin.__class__ = getattr(plain, "SVDLinear", None) or plain.Linear
    if not hasattr(twin, "fan_in_fan_out"):
        twin.fan_in_fan_out = False
    twin.quantization_backend = None
    twin.float()


def _plain_linear(layer: Any) -> nn.Linear:
    """A plain fp32 layer with the weights that the quantized one stands for."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device=layer.weight.device)
    linear.weight.data = _dequantized(layer).float()
    if layer.bias is not None:
        linear.bias.data = layer.bias.detach().float().clone()
    return linear


def _dequantized(layer: Any) -> Tensor:
    import bitsandbytes as bnb

    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    # The row scales move from the weight to the state at the first forward pass.
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    return weight.data.float() * (scales.float() / 127.0)[:, None]
