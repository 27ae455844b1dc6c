"""Models by role, as the loop and the stages see them: packed rows in, log-probabilities or scores out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.adapters import base_model, is_prompt_learning
from core.models.attention import ATTENTION, register_attention
from core.models.logprobs import linear_logprobs, logits_logprobs
from core.models.packed import Packed, PromptGroup, pack
from core.models.start import Start
from core.tokens.codec import ChatCodec

_HEAD_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")
"""Config keys that say that the logits are more than hidden @ weight.T."""

PACKED_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest accepted difference in logits between packed and plain forward, by number format."""


class _PackedModel(nn.Module):
    """A transformers model whose body is run on packed rows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        register_attention()
        self.module = module
        self.padded = is_prompt_learning(module)
        base = base_model(module)
        if not self.padded:
            base.set_attn_implementation(ATTENTION)  # type: ignore[operator]

    @property
    def base(self) -> Any:
        """The plain transformers model."""
        return base_model(self.module)

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the forward pass."""
        return self.base.dtype

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of the row, [T, d]."""
        body = getattr(self.base, self.base.base_model_prefix)
        out = body(
            input_ids=packed.input_ids_T[None],
            position_ids=packed.position_ids_T[None],
            # A four-dimensional mask is handed through unread; packed_attention has its own plan.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device),
            use_cache=False,
            packed=packed,
        )
        return out.last_hidden_state[0]

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The same weights without the adapter: the reference of an adapter run."""
        if not hasattr(self.module, "disable_adapter"):
            raise ModelError("the reference of a model without adapter cannot be had by switching the adapter off")
        with self.module.disable_adapter():  # type: ignore[operator]
            yield

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that train, with their names."""
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]


class TokenModel(_PackedModel):
    """A causal language model: packed row to the log-probability of each completion token."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        head = self.base.get_output_embeddings()
        extras = any(getattr(self.config, name, None) not in (None, 1, 1.0) for name in _HEAD_EXTRAS)
        self.plain_head = isinstance(head, nn.Linear) and type(head) is nn.Linear and head.bias is None and not extras

    def forward(
        self,
        packed: Packed,
        temperature: float = 1.0,
        want_entropy: bool = False,
        only_M: Tensor | None = None,
        smoothing: float = 0.0,
        noise_Td: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy in nats of the completion tokens, float32 [M] each.

        only_M: indices into the M completion tokens; logits are computed for these alone.
        smoothing: label smoothing, see core.models.logprobs.
        noise_Td: added to the input embeddings of the row.
        """
        packed = packed.to(self.device)
        targets, predict = packed.targets_M, packed.predict_M
        if only_M is not None:
            targets, predict = targets[only_M], predict[only_M]
        if self.padded:
            if noise_Td is not None:
                raise ModelError(
                    "a prompt method of peft takes no embedding noise", "stage.neftune_alpha", "set it to 0"
                )
            logits_MV = self._padded_logits(packed, only_M)
            return logits_logprobs(logits_MV, targets, temperature, want_entropy, smoothing)
        if not self.plain_head:
            with self._noisy_embeddings(noise_Td):
                logits_MV = self.logits(packed, only_M)
            return logits_logprobs(logits_MV, targets, temperature, want_entropy, smoothing)
        with self._noisy_embeddings(noise_Td):
            hidden = self.hidden(packed).index_select(0, predict)
        weight = self.base.get_output_embeddings().weight
        return linear_logprobs(hidden, weight, targets, temperature, want_entropy, smoothing)

    @contextmanager
    def _noisy_embeddings(self, noise_Td: Tensor | None) -> Iterator[None]:
        """Add the noise to what the embedding gives inside the block.

        The noise is drawn before the forward pass, so running a layer again in the backward pass adds nothing new.
        """
        if noise_Td is None:
            yield
            return

        def add(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return embedded + noise_Td.to(embedded)[None]

        handle = self.base.get_input_embeddings().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, packed: Packed, only_M: Tensor | None = None) -> Tensor:
        """Logits [M, V] that predict the completion tokens, in the model's number format; whole, so M must be small."""
        packed = packed.to(self.device)
        if self.padded:
            return self._padded_logits(packed, only_M)
        out = self.module(
            input_ids=packed.input_ids_T[None],
            position_ids=packed.position_ids_T[None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device),
            use_cache=False,
            logits_to_keep=packed.predict_M if only_M is None else packed.predict_M[only_M],
            packed=packed,
        )
        return out.logits[0]

    def logprobs_and_states(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Log-probability of the completion tokens in nats, float32 [M], and the last hidden state at each of them,
        float32 [M, d], detached. Raises ModelError for a prompt method, whose rows are not packed."""
        if self.padded:
            raise ModelError(
                "a prompt method's hidden states cannot be had from packed rows", mend="take another peft="
            )
        packed = packed.to(self.device)
        hidden = self.hidden(packed)
        states = hidden.detach()[packed.taken_M].float()
        if not self.plain_head:
            return self(packed)[0], states
        weight = self.base.get_output_embeddings().weight
        return linear_logprobs(hidden.index_select(0, packed.predict_M), weight, packed.targets_M)[0], states

    def _padded_logits(self, packed: Packed, only_M: Tensor | None) -> Tensor:
        """Logits [M, V] that predict the completion tokens, one padded row a completion."""
        rows = [
            torch.cat([packed.input_ids_T[root[0] : root[1]], packed.input_ids_T[own[0] : own[1]]])
            for root, own in packed.leaves
        ]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
        logits = self.module(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        # Virtual prompt tokens come first in the output.
        logits = logits[:, logits.shape[1] - ids.shape[1] :]
        picked = [
            logits[row, root[1] - root[0] - 1 : root[1] - root[0] - 1 + own[1] - own[0]]
            for row, (root, own) in enumerate(packed.leaves)
        ]
        # All completion tokens in the order of the leaves; `packed.keep` may have left some of them out.
        place_T = torch.zeros(packed.tokens, dtype=torch.long, device=ids.device)
        at = 0
        for _, (start, end) in packed.leaves:
            place_T[start:end] = torch.arange(at, at + end - start, device=ids.device)
            at += end - start
        flat = torch.cat(picked)[place_T[packed.taken_M]]
        return flat if only_M is None else flat[only_M]


class ScoreModel(_PackedModel):
    """A sequence-classification model with one output: packed row to one score a token.

    A reward model reads it at the last token of each completion, a value model at every token.
    `offset` is subtracted from each score: the mean of the reference completions after reward modelling.
    """

    def __init__(self, module: nn.Module) -> None:
        if is_prompt_learning(module):
            raise ModelError("a scoring model cannot be trained by a prompt method", mend="set peft=lora or peft=none")
        super().__init__(module)
        self.offset = float(getattr(self.config, "preftune_reward_offset", 0.0) or 0.0)

    @property
    def head_weight(self) -> Tensor:
        """Weight [1, d] of the scoring head; the trained one inside peft's wrapper where an adapter is on."""
        head = self.base.score
        saved = getattr(head, "modules_to_save", None)
        return head.weight if saved is None else saved[head.active_adapters[0]].weight

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """Score, float32, at the tokens `at` of the row; by default at the last token of each completion, [C]."""
        packed = packed.to(self.device)
        hidden = self.hidden(packed).index_select(0, packed.last_C if at is None else at)
        # In fp32: a score rounded to bf16 near 2 knows steps of 0.016 only.
        return nn.functional.linear(hidden.float(), self.head_weight.float()).squeeze(-1) - self.offset


def check_packed(model: TokenModel) -> None:
    """Refuse a model whose packed forward differs from its plain forward: it would train on wrong logits.

    Raises ModelError naming the largest difference.
    """
    if model.padded:
        return
    vocabulary = model.config.vocab_size
    ids = [1 + (7 * i) % max(vocabulary - 1, 1) for i in range(12)]
    row = pack([PromptGroup(ids[:4], [ids[4:9], ids[5:12]]), PromptGroup(ids[2:5], [ids[6:10]])])
    with torch.no_grad():
        was_training = model.training
        model.eval()
        fast, _ = model(row)
        slow, _ = logits_logprobs(model._padded_logits(row.to(model.device), None), row.targets_M.to(model.device))
        model.train(was_training)
    difference = (fast - slow).abs().max().item()
    if not difference <= PACKED_TOLERANCE[model.dtype]:
        raise ModelError(
            f"packed rows give other log-probabilities than the plain forward pass (by up to {difference:.3g})",
            where=f"model type {model.config.model_type}",
            mend="the model's attention or head is not of the common form; please report the model type",
        )


@dataclass
class Models:
    """Models by role, and what they started from; a role that the run does not have is None."""

    start: Start
    """Weights, tokenizer, number format and device that the stage began with."""
    policy: TokenModel | None = None
    reference: TokenModel | None = None
    reward_model: ScoreModel | None = None
    value_model: ScoreModel | None = None
    reference_is_adapter_off: bool = False
    """The reference is the policy with its adapter switched off; no second copy stands."""
    lr_by_role: dict[str, float] = field(default_factory=dict)
    """Peak learning rate of a role where it differs from the stage's."""

    @property
    def codec(self) -> ChatCodec:
        """The tokenizer that belongs to the policy."""
        return self.start.codec

    def by_role(self) -> dict[str, _PackedModel]:
        """The roles that exist."""
        roles = ("policy", "reference", "reward_model", "value_model")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}

    def trained(self) -> dict[str, _PackedModel]:
        """The roles with parameters that train."""
        return {role: model for role, model in self.by_role().items() if model.trainable()}

    def call(self, role: str, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of a role."""
        return self.by_role()[role](*args, **kwargs)

    def reference_logprobs(self, packed: Packed, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the completion tokens under the reference, detached, [M]."""
        with torch.no_grad():
            if self.reference is not None:
                return self.reference(packed, temperature)[0]
            if self.reference_is_adapter_off and self.policy is not None:
                with self.policy.adapter_off():
                    return self.policy(packed, temperature)[0]
        raise ModelError("this run has no reference model", mend="the stage must list the role 'reference'")
