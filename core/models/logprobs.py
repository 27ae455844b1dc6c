"""Log-probabilities of taken tokens from hidden states, in chunks, so that the [M, V] logits never stand whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 128
"""Tokens whose logits stand in memory at once: few enough that a processor's cache holds much of them."""

GRADIENT_CHUNK = 1024
"""Tokens whose logits' gradients stand at once, in the model's number format: enough that adding up the gradient of the
weight, which is as large as the weight, is seldom done."""


def _logits(hidden_Md: Tensor, weight_Vd: Tensor, temperature: float) -> Tensor:
    """Logits [M, V] in float32, over the temperature."""
    logits = (hidden_Md @ weight_Vd.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


class _LinearLogprob(torch.autograd.Function):
    """logprob_M, entropy_M = f(hidden_Md, weight_Vd, targets_M, temperature, smoothing). The backward pass computes
    each chunk's logits again. Entropy carries no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        want_entropy: bool,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        logprob = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(logprob)
        entropy = torch.zeros_like(logprob)
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = _logits(hidden[rows], weight, temperature)
            normaliser[rows] = logits.logsumexp(dim=1)
            taken = logits.gather(1, targets[rows, None]).squeeze(1)
            if smoothing:
                taken = (1 - smoothing) * taken + smoothing * logits.mean(dim=1)
            logprob[rows] = taken - normaliser[rows]
            if want_entropy:
                # H = logsumexp - sum p * logit
                share = torch.softmax(logits, dim=1)
                entropy[rows] = normaliser[rows] - (share * logits).sum(dim=1)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.temperature, ctx.smoothing = temperature, smoothing
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    def backward(
        ctx: Any, grad_logprob: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # A sum over many chunks is kept in fp32: bf16 would lose the small contributions.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if want_weight else None
        for first in range(0, len(targets), GRADIENT_CHUNK):
            block = slice(first, first + GRADIENT_CHUNK)
            grad = torch.empty(len(targets[block]), len(weight), dtype=hidden.dtype, device=hidden.device)
            for start in range(first, first + len(grad), CHUNK):
                rows = slice(start, min(start + CHUNK, first + len(grad)))
                logits = _logits(hidden[rows], weight, ctx.temperature)
                scale = grad_logprob[rows, None] / ctx.temperature
                chunk = logits.sub_(normaliser[rows, None]).exp_().mul_(-scale)
                chunk.scatter_add_(1, targets[rows, None], scale * (1 - ctx.smoothing))
                if ctx.smoothing:
                    chunk += scale * (ctx.smoothing / chunk.shape[1])
                grad[start - first : start - first + len(chunk)] = chunk
            if grad_hidden is not None:
                grad_hidden[block] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[block]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def linear_logprobs(
    hidden_Md: Tensor,
    weight_Vd: Tensor,
    targets_M: Tensor,
    temperature: float = 1.0,
    want_entropy: bool = False,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy in nats, float32 [M] each, of softmax(hidden @ weight.T / temperature).

    Differentiable in hidden and weight; entropy is detached, and zero unless asked for. With `smoothing` e the first
    is (1 - e) * log p(target) + e * mean over the vocabulary of log p: the negative cross-entropy against a target
    that is mixed with the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    if len(targets_M) == 0:
        empty = hidden_Md.new_zeros(0, dtype=torch.float32)
        return empty, empty
    logprob, entropy = _LinearLogprob.apply(hidden_Md, weight_Vd, targets_M, temperature, want_entropy, smoothing)
    return logprob, entropy


def logits_logprobs(
    logits_MV: Tensor,
    targets_M: Tensor,
    temperature: float = 1.0,
    want_entropy: bool = False,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The same from whole logits: the plain road, for models whose head is more than a matrix."""
    logprobs = torch.log_softmax(logits_MV.float() / temperature, dim=1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1).detach() if want_entropy else torch.zeros_like(logprobs[:, 0])
    taken = logprobs.gather(1, targets_M[:, None]).squeeze(1)
    if smoothing:
        taken = (1 - smoothing) * taken + smoothing * logprobs.mean(dim=1)
    return taken, entropy


def sum_by_completion(values_M: Tensor, completion_M: Tensor, completions: int) -> Tensor:
    """Sum of the token values of each completion, [C]."""
    return torch.zeros(completions, dtype=values_M.dtype, device=values_M.device).index_add(0, completion_M, values_M)
