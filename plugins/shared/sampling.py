"""Drawing tokens, alike in every rollout engine: the same logits, seed and place give the same token.

Behaviour log-probabilities are those of the distribution that was really sampled from: log-softmax in fp32 of
logits / temperature, with everything outside top-k and top-p at -inf, so that a truncated distribution is
renormalised. Greedy decoding (temperature 0) reports natural log-probabilities and ignores top-k and top-p.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from core.api import DataError


def request_seed(seed: int, prompt_index: int) -> int:
    """Seed of the first sample of one prompt; its sample i takes this plus i. In [0, 2**32), for torch's CPU
    generator reads 32 bits."""
    digest = hashlib.blake2b(f"{seed}/{prompt_index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def truncate_logits(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Put -inf outside the `top_k` largest logits (0: all), then outside the smallest set of tokens whose
    probability reaches `top_p`.

    logits_BV: float32 [B, V], already divided by the temperature. Returns float32 [B, V]; at least one token a row
    stays.
    """
    vocabulary = logits_BV.shape[-1]
    if 0 < top_k < vocabulary:
        smallest_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, float("-inf"))
    if top_p < 1.0:
        ascending_BV, order_BV = logits_BV.sort(dim=-1)
        outside_BV = ascending_BV.softmax(-1).cumsum(-1) <= 1.0 - top_p
        outside_BV[:, -1] = False
        outside_BV = torch.zeros_like(outside_BV).scatter_(-1, order_BV, outside_BV)
        logits_BV = logits_BV.masked_fill(outside_BV, float("-inf"))
    return logits_BV


def draw(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Token of each row whose share of the cumulated probability holds `uniform_B`.

    logprobs_BV: float32 [B, V], normalised, nats. uniform_B: float32 [B] in [0, 1). Returns int64 [B]. One uniform
    number a token makes the draw cheap (no noise over the vocabulary) and independent of the other rows.
    """
    cumulated_BV = logprobs_BV.exp().cumsum(-1)
    total_B1 = cumulated_BV[:, -1:].contiguous()
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulated_BV, target_B1, right=True)[:, 0]


def sample_tokens(
    logits_BV: Tensor, generators: Sequence[torch.Generator], temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B] and their behaviour log-probabilities float32 [B] in nats, one generator a row.

    logits_BV: [B, V] in any number format, raw. Each generator gives one number; none is used when greedy.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        logprobs_BV = logits_BV.log_softmax(-1)
    else:
        if temperature != 1.0:
            logits_BV = logits_BV / temperature
        logprobs_BV = truncate_logits(logits_BV, top_k, top_p).log_softmax(-1)
        tokens_B = draw(logprobs_BV, uniforms(generators).to(logits_BV.device))
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """The next number of each CPU generator, float32 [B] in [0, 1)."""
    return torch.stack([torch.rand((), generator=generator, dtype=torch.float32) for generator in generators])


def check_prompts(prompts: Sequence[Sequence[int]], new_tokens: int, limit: int | None, engine: str) -> None:
    """Raise DataError for a prompt without tokens, or one that with `new_tokens` more is longer than `limit`."""
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"prompt {index} has no tokens", where=f"rollout={engine}", mend="drop the empty record")
        if limit is not None and len(prompt) + new_tokens > limit:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens; with {new_tokens} new ones it exceeds the {limit} that "
                "the engine was built for",
                where=f"rollout={engine}",
                mend="raise model.max_length, or lower the number of new tokens",
            )
