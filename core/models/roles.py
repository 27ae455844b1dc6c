"""Models by role, as the loop and the stages see them: packed rows in, log-probabilities or scores out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from core.errors import ModelError
from core.models.adapters import base_model, is_prompt_learning
from core.models.attention import switch_attention
from core.models.logprobs import linear_logprobs, logits_logprobs
from core.models.packed import Packed, longest
from core.models.padded import padded_batches, pick
from core.models.road import Road
from core.models.router import Router
from core.models.start import Start
from core.settings.schema import Rows
from core.tokens.codec import ChatCodec

_HEAD_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap")
"""Config keys that say that the logits are more than hidden @ weight.T."""


class _RowModel(nn.Module):
    """A transformers model that takes packed rows. Outside of them it stands in its own attention, as transformers
    made it; `road` says which rows are run packed and which in padded batches."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.prompted = is_prompt_learning(module)
        """A peft method puts virtual tokens before each sequence, so no row can be packed."""
        self.road = Road(Rows.padded, "a prompt method of peft") if self.prompted else Road()
        switch_attention(self.base)

    @property
    def base(self) -> Any:
        """The plain transformers model."""
        return base_model(self.module)

    @property
    def body(self) -> Any:
        """The plain model without its head."""
        return getattr(self.base, self.base.base_model_prefix)

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

    def hidden(self, packed: Packed, noise_Td: Tensor | None = None) -> Tensor:
        """Last hidden states of the row, [T, d]. noise_Td: added to the input embeddings.

        Raises ModelError for a prompt method, whose rows are not packed."""
        if self.prompted:
            raise ModelError(
                "a prompt method's hidden states cannot be had from packed rows", mend="take another peft="
            )
        packed = packed.to(self.device)
        if self._is_packed(packed):
            with self._noisy_embeddings(noise_Td):
                return self._run(self.body, **_packed_inputs(packed)).last_hidden_state[0]
        every_T = torch.arange(packed.tokens)
        return self._padded(self.body, "last_hidden_state", packed, every_T, noise_Td)

    def _is_packed(self, packed: Packed) -> bool:
        """Whether the row goes through the model as it stands."""
        limit = self.road.limit
        return self.road.rows is Rows.packed and (limit is None or longest(packed) <= limit)

    def _run(self, module: Any, **inputs: Any) -> Any:
        """A forward pass of the body or of the whole model."""
        return module(**inputs, use_cache=False)

    def _padded(
        self, module: Any, output: str, packed: Packed, wanted_W: Tensor, noise_Td: Tensor | None = None
    ) -> Tensor:
        """The output [W, ...] of the module at the tokens `wanted_W` of the row, from padded batches."""
        alone = self.road.rows is Rows.single or (self.road.rows is Rows.packed and self.road.alone)
        batches, place_T = padded_batches(packed, alone=alone)

        def outputs() -> Iterator[Tensor]:
            for batch in batches:
                index_BL = batch.index_BL.to(self.device)
                with self._noisy_embeddings(noise_Td, index_BL):
                    out_BLX = getattr(
                        self._run(
                            module,
                            input_ids=packed.input_ids_T[index_BL],
                            attention_mask=batch.mask_BL.long().to(self.device),
                        ),
                        output,
                    )
                # Virtual prompt tokens come first in the output.
                yield out_BLX[:, out_BLX.shape[1] - index_BL.shape[1] :].flatten(0, 1)

        return pick(outputs(), place_T[wanted_W.cpu()])

    @contextmanager
    def _noisy_embeddings(self, noise_Td: Tensor | None, index_BL: Tensor | None = None) -> Iterator[None]:
        """Add the noise to what the embedding gives inside the block.

        index_BL: tokens of the packed row that the batch is made of; None for the row itself.
        The noise is drawn before the forward pass, so running a layer again in the backward pass adds nothing new.
        """
        if noise_Td is None:
            yield
            return
        noise_BLd = noise_Td[None] if index_BL is None else noise_Td[index_BL]

        def add(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return embedded + noise_BLd.to(embedded)

        handle = self.base.get_input_embeddings().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

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


def _packed_inputs(packed: Packed) -> dict[str, Any]:
    """A packed row as keywords of a transformers model."""
    return {
        "input_ids": packed.input_ids_T[None],
        "position_ids": packed.position_ids_T[None],
        # A four-dimensional mask is handed through unread; packed_attention has its own plan.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids_T.device),
        "packed": packed,
    }


class TokenModel(_RowModel):
    """A causal language model: packed row to the log-probability of each completion token."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        head = self.base.get_output_embeddings()
        text = self.config.get_text_config(decoder=True)
        extras = any(getattr(text, name, None) not in (None, 1, 1.0) for name in _HEAD_EXTRAS)
        self.plain_head = type(head) is nn.Linear and head.bias is None and not extras and not self.prompted
        """The head is a matrix and nothing else, so that the logits need never stand whole."""
        self.router = Router(self.base)

    def follow(self, other: TokenModel) -> None:
        """Take the road of a model of the same architecture, and its attention."""
        self.road, self.plain_head = other.road, other.plain_head
        if self.config._attn_implementation != other.config._attn_implementation:
            self.base.set_attn_implementation(other.config._attn_implementation)

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
        if not self.plain_head:
            if self.prompted and noise_Td is not None:
                raise ModelError(
                    "a prompt method of peft takes no embedding noise", "stage.neftune_alpha", "set it to 0"
                )
            logits_MV = self.logits(packed, only_M, noise_Td)
            return logits_logprobs(logits_MV, targets, temperature, want_entropy, smoothing)
        weight = self.base.get_output_embeddings().weight
        # Some bodies keep their residual stream in fp32.
        hidden = self.hidden(packed, noise_Td).index_select(0, predict).to(weight.dtype)
        return linear_logprobs(hidden, weight, targets, temperature, want_entropy, smoothing)

    @override
    def _run(self, module: Any, **inputs: Any) -> Any:
        if self.router.coefficient and (self.router.collecting or module is self.module):
            return self.router.run(self.module, self.body, whole=module is self.module, **inputs)
        return super()._run(module, **inputs)

    def logits(self, packed: Packed, only_M: Tensor | None = None, noise_Td: Tensor | None = None) -> Tensor:
        """Logits [M, V] that predict the completion tokens, in the model's number format; whole, so M must be small."""
        packed = packed.to(self.device)
        predict_M = packed.predict_M if only_M is None else packed.predict_M[only_M]
        if self._is_packed(packed):
            with self._noisy_embeddings(noise_Td):
                return self._run(self.module, **_packed_inputs(packed), logits_to_keep=predict_M).logits[0]
        return self._padded(self.module, "logits", packed, predict_M, noise_Td)

    def logprobs_and_states(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Log-probability of the completion tokens in nats, float32 [M], and the last hidden state at each of them,
        float32 [M, d], detached. Raises ModelError for a prompt method, whose rows are not packed."""
        packed = packed.to(self.device)
        hidden = self.hidden(packed)
        states = hidden.detach()[packed.taken_M].float()
        if not self.plain_head:
            return self(packed)[0], states
        weight = self.base.get_output_embeddings().weight
        predicting = hidden.index_select(0, packed.predict_M).to(weight.dtype)
        return linear_logprobs(predicting, weight, packed.targets_M)[0], states


class ScoreModel(_RowModel):
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
    def head(self) -> nn.Linear:
        """The scoring head d -> 1; the trained one inside peft's wrapper where an adapter is on."""
        head = self.base.score
        saved = getattr(head, "modules_to_save", None)
        return head if saved is None else saved[head.active_adapters[0]]

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """Score, float32, at the tokens `at` of the row; by default at the last token of each completion, [C]."""
        packed = packed.to(self.device)
        hidden = self.hidden(packed).index_select(0, packed.last_C if at is None else at)
        return self.score_of(hidden)

    def score_of(self, hidden: Tensor) -> Tensor:
        """Scores, float32 [N], of hidden states [N, d]."""
        # In fp32: a score rounded to bf16 near 2 knows steps of 0.016 only.
        bias = None if self.head.bias is None else self.head.bias.float()
        return nn.functional.linear(hidden.float(), self.head.weight.float(), bias).squeeze(-1) - self.offset


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

    def by_role(self) -> dict[str, _RowModel]:
        """The roles that exist."""
        roles = ("policy", "reference", "reward_model", "value_model")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}

    def trained(self) -> dict[str, _RowModel]:
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
