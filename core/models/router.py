"""The load-balancing loss of a mixture of experts, which a model's config may ask for beside the stage's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
"""Names that transformers' families give to the loss's weight."""


class Router:
    """The router loss of a causal language model, by the family's own code.

    coefficient: the config's where it sets `output_router_logits`, as in transformers' own training, else 0.
    The tokens of a packed row count once, a prompt that several completions share too.
    """

    def __init__(self, base: Any) -> None:
        text = base.config.get_text_config(decoder=True)
        known = [getattr(base, name, None) for name in _COEFFICIENTS]
        asked = getattr(text, "output_router_logits", False)
        self.coefficient = next((float(value) for value in known if value is not None), 0.0) if asked else 0.0
        self._losses: list[tuple[Tensor, int]] | None = None

    @property
    def collecting(self) -> bool:
        """Whether forward passes leave their router loss here."""
        return self._losses is not None and torch.is_grad_enabled()

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Within the block, forward passes with gradients leave their router loss here."""
        self._losses = []
        try:
            yield
        finally:
            self._losses = None

    def loss(self) -> Tensor | None:
        """Coefficient times the mean over the tokens of the forward passes so far, []; None where there were none."""
        if not self._losses:
            return None
        tokens = sum(count for _, count in self._losses)
        return self.coefficient * torch.stack([loss * (count / tokens) for loss, count in self._losses]).sum()

    def run(self, module: Any, body: nn.Module, *, whole: bool, **inputs: Any) -> Any:
        """A forward pass of the whole model: its output, or with `whole` false the output of its body."""
        mask = inputs["attention_mask"]
        if self.collecting and mask.dim() == 4:
            # Families read a mask [B, L] here; packed attention reads none.
            inputs["attention_mask"] = None
        kept: list[Any] = []
        handle = body.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            out = module(
                **inputs,
                use_cache=False,
                output_router_logits=self.collecting,
                **({} if whole else {"logits_to_keep": 1}),
            )
        finally:
            handle.remove()
        loss = getattr(out, "aux_loss", None)
        if self.collecting and isinstance(loss, Tensor):
            assert self._losses is not None
            tokens = inputs["input_ids"].numel() if mask.dim() == 4 else int(mask.sum())
            self._losses.append((loss, tokens))
        return out if whole else kept[0]
