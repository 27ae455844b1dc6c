"""Likeness of two texts: cosine of the mean of their last hidden states, under the policy or another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.api import Score, ScorerContext, ScoreRequest
from reward_models import EmbeddingConfig
from reward_models.verdict import gold_of

if TYPE_CHECKING:
    import torch


class Embedding:
    """The scorer. Score: cosine, -1 to 1, of the completion and the gold answer.

    With the policy it follows the policy: as a judge of targets it is the start model, as a reward it changes with
    training. Its own model, where the config names one, is loaded at the first score.
    """

    def __init__(self, config: EmbeddingConfig, context: ScorerContext) -> None:
        self.config, self.context = config, context
        self.own: tuple[Any, Any] | None = None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request; an empty completion or gold answer is an error of that request alone."""
        golds = [gold_of(request) for request in requests]
        texts = list(dict.fromkeys(text for request, gold in zip(requests, golds, strict=True)
                                   for text in (request.completion, gold) if text and text.strip()))  # fmt: skip
        vectors = self.embed(texts)
        scores = []
        for request, gold in zip(requests, golds, strict=True):
            ours, theirs = vectors.get(request.completion), vectors.get(gold or "")
            if theirs is None:
                scores.append(Score(None, error="the record has no gold answer"))
            elif ours is None:
                scores.append(Score(None, error="the completion is empty"))
            else:
                scores.append(Score(float(ours @ theirs)))
        return scores

    def embed(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text to vector of length 1, float32 [d]."""
        import torch

        body, tokenizer = self._model()
        vectors: dict[str, torch.Tensor] = {}
        ids = [tokenizer(text, truncation=True, max_length=self.config.max_tokens)["input_ids"] for text in texts]
        order = sorted((place for place in range(len(texts)) if ids[place]), key=lambda place: len(ids[place]))
        for batch in _batches(order, [len(one) for one in ids], self.config.batch_tokens):
            longest = len(ids[batch[-1]])
            ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, place in enumerate(batch):
                ids_BT[row, : len(ids[place])] = torch.tensor(ids[place])
                mask_BT[row, : len(ids[place])] = 1
            ids_BT, mask_BT = ids_BT.to(self.context.device), mask_BT.to(self.context.device)
            with torch.no_grad():
                hidden_BTD = body(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
            sums_BD = (hidden_BTD * mask_BT[..., None]).sum(1)
            unit_BD = torch.nn.functional.normalize(sums_BD, dim=-1).cpu()  # the mean's direction is the sum's
            vectors |= {texts[place]: unit_BD[row] for row, place in enumerate(batch)}
        return vectors

    def _model(self) -> tuple[Any, Any]:
        """The body of a transformers model, in eval mode, and its tokenizer."""
        if not self.config.source:
            models = self.context.parts.models
            policy, codec = models.policy, models.codec
            return getattr(policy.base, policy.base.base_model_prefix), codec.tokenizer
        if self.own is None:
            from core.torch_api import plain_body

            self.own = plain_body(self.config.source, self.context.device, self.context.dtype)
        return self.own

    def close(self) -> None:
        """Give the own model's memory back."""
        self.own = None


def _batches(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """`order`, which is by length, cut so that a batch padded to its longest text has at most `limit` tokens."""
    batches: list[list[int]] = []
    for place in order:
        if not batches or lengths[place] * (len(batches[-1]) + 1) > limit:
            batches.append([])
        batches[-1].append(place)
    return batches


def build(config: EmbeddingConfig, context: ScorerContext) -> Embedding:
    """The scorer of a run."""
    return Embedding(config, context)
