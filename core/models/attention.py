"""Attention of packed rows, in the form in which transformers calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.models.packed import Packed, longest

ATTENTION = "preftune_packed"
"""Name under which transformers knows it."""

_LONGEST_MATMUL_BACKWARD = 1024
"""Keys up to which the backward pass below is faster than torch's own, on CPU in bf16."""


class _CpuAttention(torch.autograd.Function):
    """Scaled dot-product attention on CPU: torch's fused forward pass, and a backward pass by matrix products.

    In bf16 torch's fused backward takes about four times as long for short sequences. The forward pass is the one that
    runs without gradients too, so both give the same bits.
    query, key, value: [N, H, L, D]; mask: additive, [N, 1, Q, K] or None for causal self-attention.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, mask is None, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, out, normaliser)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, mask, out, normaliser = ctx.saved_tensors
        # FlashAttention-2's backward (arXiv:2307.08691, alg. 2) in one block: P from the saved normaliser, then
        # dS = P * (dP - rowsum(dO * O)).
        weights = torch.matmul(query, key.transpose(-1, -2)).float().mul_(ctx.scale)
        if mask is None:
            length = query.shape[-2]
            weights.masked_fill_(~torch.ones(length, length, dtype=torch.bool).tril(), float("-inf"))
        else:
            weights += mask
        weights.sub_(normaliser.unsqueeze(-1)).exp_()
        grad_value = torch.matmul(weights.to(value.dtype).transpose(-1, -2), grad_out)
        delta = (grad_out.float() * out.float()).sum(dim=-1, keepdim=True)
        grad_weights = torch.matmul(grad_out, value.transpose(-1, -2)).float().sub_(delta)
        grad_scores = weights.mul_(grad_weights).mul_(ctx.scale).to(query.dtype)
        return (
            torch.matmul(grad_scores, key),
            torch.matmul(grad_scores.transpose(-1, -2), query),
            grad_value,
            None,
            None,
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention [N, H, Q, D] of padded segments; mask True where a query may look, None for causal."""
    short = key.shape[-2] <= _LONGEST_MATMUL_BACKWARD
    # The fused kernel wants values as wide as keys, which multi-head latent attention has not.
    even = value.shape[-1] == key.shape[-1]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and short and even:
        additive = None
        if mask is not None:
            additive = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        return _CpuAttention.apply(query, key, value, additive, scale)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for rows [T, ...] and an index of any shape. The backward pass of advanced indexing takes five times
    as long on CPU."""
    return rows.flatten(1).index_select(0, index.flatten()).reshape(*index.shape, *rows.shape[1:])


class NotPackable(ValueError):
    """The model's attention does something that packed rows do not."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Packed | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row in the form transformers calls it: query [1, H, T, D], key and value [1, G, T, D].

    Raises NotPackable for soft-capping, for a sequence beyond the window, and for what else enters the attention
    weights, such as sinks and position biases.
    """
    del module, attention_mask, dropout
    if packed is None:
        raise NotPackable("layers that do not hand the row's layout on")
    if softcap:
        raise NotPackable("attention soft-capping")
    if sliding_window and longest(packed) > sliding_window:
        raise NotPackable(f"a sequence is longer than the sliding window of {sliding_window} tokens")
    for name, given in more.items():
        # Positions and the like are whole numbers.
        if isinstance(given, Tensor) and given.is_floating_point():
            raise NotPackable(f"attention with {name}")
    heads, tokens = query.shape[1], query.shape[2]
    q_THD, k_TGD, v_TGD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    pieces, places = [], []
    for call in packed.calls:
        q = take_rows(q_THD, call.query_NQ).transpose(1, 2)
        k = take_rows(k_TGD, call.key_NK).transpose(1, 2)
        v = take_rows(v_TGD, call.key_NK).transpose(1, 2)
        if k.shape[1] != heads:
            # Repeated here, not by enable_gqa: that flag leaves the fused CPU kernel.
            k = k.repeat_interleave(heads // k.shape[1], dim=1)
            v = v.repeat_interleave(heads // v.shape[1], dim=1)
        mask = None if call.mask_NQK is None else call.mask_NQK[:, None]
        out = _attend(q, k, v, mask, scale)
        pieces.append(take_rows(out.transpose(1, 2).reshape(-1, heads, v.shape[-1]), call.source_S))
        places.append(call.target_S)
    flat = torch.cat(pieces)
    # One gather puts every token back in its place: cheaper in backward than writing into an empty tensor.
    order = torch.empty(tokens, dtype=torch.long, device=flat.device)
    order[torch.cat(places)] = torch.arange(tokens, device=flat.device)
    return take_rows(flat, order)[None], None


def register_attention() -> None:
    """Make `ATTENTION` known to transformers, with the mask of plain SDPA."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        return sdpa_mask(*args, **kwargs)

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, mask)


def switch_attention(base: torch.nn.Module) -> None:
    """Let every part of a transformers model use packed attention in calls that hand it a packed row, and its own in
    all others: in generation, in padded batches. A layer that is run again in the backward pass finds the same."""
    register_attention()
    for part in base.modules():
        if hasattr(part, "config") and not hasattr(part, _BEFORE):
            setattr(part, _BEFORE, [])
            part.register_forward_pre_hook(_enter, with_kwargs=True)
            part.register_forward_hook(_leave, with_kwargs=True, always_call=True)


_BEFORE = "_preftune_attention_before"
"""Attribute of a module: the attention outside of its calls that are under way."""


def _enter(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    del args
    if kwargs.get("packed") is not None:
        getattr(module, _BEFORE).append(module.config._attn_implementation_internal)
        module.config._attn_implementation_internal = ATTENTION


def _leave(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    del args, output
    if kwargs.get("packed") is not None and getattr(module, _BEFORE):
        module.config._attn_implementation_internal = getattr(module, _BEFORE).pop()
