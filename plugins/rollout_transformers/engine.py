"""A sampling loop over the policy's own forward pass: prompts are prefilled once, their keys and values are shared
out to the samples, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from core.api import Rollout, Sampling, TrainingError
from core.torch_api import Start, is_prompt_learning
from plugins.rollout_transformers import TransformersRolloutConfig
from plugins.shared.sampling import check_prompts, request_seed, sample_tokens

SCORE_TOKENS = 2048
"""Most tokens (padding included) in one scoring pass; bounds the [tokens, vocabulary] logits in memory."""


def build(config: TransformersRolloutConfig, start: Start, module: nn.Module) -> TransformersEngine:
    """Engine over the policy's own module."""
    del start
    return TransformersEngine(module, config)


@dataclass
class _Row:
    """One completion in the making."""

    prompt_index: int
    sample_index: int
    generator: torch.Generator
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


class TransformersEngine:
    """RolloutEngine over a transformers module or PeftModel.

    module: used in eval mode without gradient; its training flags are put back afterwards, and the caller's autocast
        context applies.

    A rollout depends on the weights, its prompt, its index in the call and `sampling`; other rows in the batch touch
    it only through rounding. The global random state is neither read nor changed.
    """

    name = "transformers"

    def __init__(self, module: nn.Module, config: TransformersRolloutConfig) -> None:
        self._held: nn.Module | None = module
        self._config = config
        self._version = 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Rollout]:
        """Completions in the order of the prompts, the n of one prompt side by side.

        Log-probabilities are float32 nats under temperature and truncation, see plugins.shared.sampling.
        Raises: DataError for an empty prompt; TrainingError after `close`.
        """
        module = self._module()
        check_prompts(prompts, sampling.max_new_tokens, None, self.name)
        rows: dict[tuple[int, int], _Row] = {}
        with _evaluating(module), torch.no_grad():
            for batch in self._batches(prompts, sampling, equal_lengths=is_prompt_learning(module)):
                for row in self._generate_batch(module, prompts, batch, sampling):
                    rows[row.prompt_index, row.sample_index] = row
        return [
            Rollout(
                prompt_ids=list(prompts[prompt_index]),
                completion_ids=row.completion_ids,
                logprobs=row.logprobs,
                finished=row.finished,
                policy_version=self._version,
                prompt_index=prompt_index,
            )
            for (prompt_index, _), row in sorted(rows.items())
        ]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability (float32 log-softmax, nats) of each token but the first, given those before it.

        Raises: DataError for an empty sequence; TrainingError after `close`.
        """
        module = self._module()
        check_prompts(sequences, 0, None, self.name)
        scores: list[list[float]] = [[] for _ in sequences]
        equal_lengths = is_prompt_learning(module)
        order = sorted((i for i in range(len(sequences)) if len(sequences[i]) > 1), key=lambda i: len(sequences[i]))
        with _evaluating(module), torch.no_grad():
            for batch in _by_length(order, [len(s) for s in sequences], 1, SCORE_TOKENS, equal_lengths):
                longest = len(sequences[batch[-1]])
                ids_BT, mask_BT = _padded([sequences[i] for i in batch], longest, _device(module), left=False)
                logits_BTV = module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, -longest:]
                for row, index in enumerate(batch):
                    targets_T = ids_BT[row, 1 : len(sequences[index])]
                    logprobs_TV = logits_BTV[row, : len(targets_T)].float().log_softmax(-1)
                    scores[index] = logprobs_TV.gather(-1, targets_T[:, None])[:, 0].tolist()
        return scores

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Note the version; the weights are the module's own and are not read."""
        del weights
        self._version = version

    def close(self) -> None:
        """Let go of the module. Safe to call twice."""
        self._held = None

    def _module(self) -> nn.Module:
        if self._held is None:
            raise TrainingError("the rollout engine was closed", where=f"rollout={self.name}", mend="build it again")
        return self._held

    def _batches(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, equal_lengths: bool
    ) -> Iterator[list[tuple[int, range]]]:
        """Lists of (prompt index, sample indices), prompts of like length together, within `batch_tokens`."""
        lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: lengths[i])
        for batch in _by_length(order, lengths, sampling.n, self._config.batch_tokens, equal_lengths):
            at_once = max(1, self._config.batch_tokens // lengths[batch[-1]])
            if len(batch) > 1 or sampling.n <= at_once:
                yield [(index, range(sampling.n)) for index in batch]
            else:
                for start in range(0, sampling.n, at_once):
                    yield [(batch[0], range(start, min(start + at_once, sampling.n)))]

    def _generate_batch(
        self, module: nn.Module, prompts: Sequence[Sequence[int]], batch: list[tuple[int, range]], sampling: Sampling
    ) -> list[_Row]:
        device = _device(module)
        stop = frozenset(sampling.stop_token_ids)
        longest = max(len(prompts[index]) for index, _ in batch)
        ids_BT, mask_BT = _padded([prompts[index] for index, _ in batch], longest, device, left=True)
        rows = [
            _Row(index, sample, torch.Generator().manual_seed(request_seed(sampling.seed, index) + sample))
            for index, samples in batch
            for sample in samples
        ]
        counts_B = torch.tensor([len(samples) for _, samples in batch], device=device)
        source_R = torch.arange(len(batch), device=device).repeat_interleave(counts_B)
        decoder = (_Recomputing if is_prompt_learning(module) else _Caching)(
            module, ids_BT, mask_BT, longest + sampling.max_new_tokens
        )
        logits_RV = decoder.prefill()[source_R]
        if len(rows) > len(batch):
            decoder.select(source_R)
        running = list(range(len(rows)))  # the row that each place of the batch works for
        for position in range(sampling.max_new_tokens):
            tokens_R, logprobs_R = sample_tokens(
                logits_RV, [rows[r].generator for r in running], sampling.temperature, sampling.top_k, sampling.top_p
            )
            for r, token, logprob in zip(running, tokens_R.tolist(), logprobs_R.tolist(), strict=True):
                if not rows[r].finished:
                    rows[r].completion_ids.append(token)
                    rows[r].logprobs.append(logprob)
                    rows[r].finished = token in stop
            keep = [place for place, r in enumerate(running) if not rows[r].finished]
            if not keep or position + 1 == sampling.max_new_tokens:
                break
            if len(keep) <= self._config.compact_frac * len(running):
                keep_R = torch.tensor(keep, device=device)
                decoder.select(keep_R)
                tokens_R = tokens_R[keep_R]
                running = [running[place] for place in keep]
            logits_RV = decoder.step(tokens_R)
        return rows


class _Caching:
    """Forward passes with keys and values kept, in buffers that are allocated once."""

    def __init__(self, module: nn.Module, ids_BT: Tensor, mask_BT: Tensor, capacity: int) -> None:
        self._module = module
        self._ids_BT = ids_BT
        self._length = ids_BT.shape[1]
        self._positions_B = mask_BT.sum(-1) - 1
        # Rows of one length need no mask, and attention is faster without.
        self._mask_BC: Tensor | None = None
        if not bool(mask_BT.all()):
            self._mask_BC = mask_BT.new_ones(len(mask_BT), capacity)
            self._mask_BC[:, : self._length] = mask_BT
        self._cache: Any = DynamicCache(config=cast(Any, module.config))
        self._cache.layers = [
            _BufferedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in self._cache.layers
        ]

    def prefill(self) -> Tensor:
        """Logits after the last prompt token, [B, V]."""
        mask_BT = None if self._mask_BC is None else self._mask_BC[:, : self._length]
        steps_T = torch.arange(self._length, device=self._ids_BT.device) - (self._length - 1)
        # The last place by its index: a slice of it is not contiguous, and torch then copies the head for each row.
        last_1 = torch.tensor([self._length - 1], device=self._ids_BT.device)
        return self._forward(self._ids_BT, mask_BT, (self._positions_B[:, None] + steps_T).clamp(min=0), last_1)

    def step(self, tokens_R: Tensor) -> Tensor:
        """Logits after one more token in each row, [R, V]."""
        self._length += 1
        self._positions_B = self._positions_B + 1
        mask_BT = None if self._mask_BC is None else self._mask_BC[:, : self._length]
        return self._forward(tokens_R[:, None], mask_BT, self._positions_B[:, None])

    def select(self, rows_R: Tensor) -> None:
        """Go on with these rows of the batch, each as often as it is named."""
        self._positions_B = self._positions_B[rows_R]
        if self._mask_BC is not None:
            self._mask_BC = self._mask_BC[rows_R]
        for layer in self._cache.layers:
            layer.batch_select_indices(rows_R)

    def _forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor, logits_to_keep: int | Tensor = 1
    ) -> Tensor:
        output = self._module(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits[:, -1]


class _Recomputing:
    """Forward passes over the whole sequence, for adapters that put virtual tokens in front of every call. Rows must
    be of one length."""

    def __init__(self, module: nn.Module, ids_BT: Tensor, mask_BT: Tensor, capacity: int) -> None:
        del mask_BT, capacity
        self._module = module
        self._ids_BT = ids_BT

    def prefill(self) -> Tensor:
        """Logits after the last prompt token, [B, V]."""
        mask_BT = torch.ones_like(self._ids_BT)
        return self._module(input_ids=self._ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, -1]

    def step(self, tokens_R: Tensor) -> Tensor:
        """Logits after one more token in each row, [R, V]."""
        self._ids_BT = torch.cat([self._ids_BT, tokens_R[:, None]], dim=1)
        return self.prefill()

    def select(self, rows_R: Tensor) -> None:
        """Go on with these rows of the batch, each as often as it is named."""
        self._ids_BT = self._ids_BT[rows_R]


class _BufferedLayer(DynamicLayer):
    """A cache layer that writes into one buffer of `capacity` positions instead of copying itself at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0

    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys = _buffer(key_states, self._capacity)
        self._values = _buffer(value_states, self._capacity)
        self.is_initialized = True
        self._view()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        self._view()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._keys = _select(self._keys, indices, self._length)
            self._values = _select(self._values, indices, self._length)
            self._view()

    def _view(self) -> None:
        self.keys = self._keys[:, :, : self._length]
        self.values = self._values[:, :, : self._length]


def _buffer(like_BHTD: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = like_BHTD.shape
    return like_BHTD.new_empty(batch, heads, capacity, width)


def _select(buffer_BHCD: Tensor, indices: Tensor, length: int) -> Tensor:
    selected = buffer_BHCD.new_empty(len(indices), *buffer_BHCD.shape[1:])
    selected[:, :, :length] = buffer_BHCD[:, :, :length][indices]
    return selected


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within, each submodule's own flag put back afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _by_length(
    order: Sequence[int], lengths: Sequence[int], copies: int, limit: int, equal_lengths: bool
) -> Iterator[list[int]]:
    """Cut `order` (ascending in length) so that items × copies × longest stays within `limit`, one item at least."""
    batch: list[int] = []
    for index in order:
        fits = (len(batch) + 1) * copies * lengths[index] <= limit
        if batch and (not fits or (equal_lengths and lengths[index] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(
    sequences: Sequence[Sequence[int]], longest: int, device: torch.device, left: bool
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 [B, longest]. Padding is token 0, which is masked."""
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids_BT[row, place] = torch.as_tensor(sequence, dtype=torch.long)
        mask_BT[row, place] = 1
    return ids_BT.to(device), mask_BT.to(device)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
