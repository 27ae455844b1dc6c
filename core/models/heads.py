"""A scoring head on any body: the class of one-score models, where transformers has none for a family.

What it saves is laid out as transformers lays out its own: `config.json` and safetensors that hold the body under the
family's prefix, which `AutoModel.from_pretrained` reads, and the head as `score.weight` [1, d].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def score_class(config: Any) -> Any:
    """What loads a model with one score a token for a transformers config: transformers' own road where its class has a
    linear `score`, else a class of that form on the family's body. It has `from_pretrained` and `from_config`."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind: Any = type(config)
    known: Any = AutoModelForSequenceClassification._model_mapping.get(kind, None)
    body: Any = AutoModel._model_mapping.get(kind, None)
    if body is None or (known is not None and _has_linear_score(known, config)):
        return AutoModelForSequenceClassification  # which also says what it does not know
    return _own_class(body[0] if isinstance(body, (tuple, list)) else body, kind)


def _has_linear_score(known: Any, config: Any) -> bool:
    """Whether the class reads its scores from the last hidden states by one matrix named `score`."""
    from transformers.modeling_layers import GenericForSequenceClassification

    if issubclass(known, GenericForSequenceClassification):
        return True
    with torch.device("meta"):
        return isinstance(getattr(known(config), "score", None), nn.Linear)


class _OneScore:
    """A family's body with a linear `score` without bias, read at the last token that the attention mask keeps."""

    def __init__(self, config: Any) -> None:
        from transformers import AutoModel

        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))  # type: ignore[attr-defined]
        width = config.get_text_config(decoder=True).hidden_size
        self.score = nn.Linear(width, config.num_labels, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def from_config(cls, config: Any, **_: Any) -> Any:
        """A model with random weights; what only code of a model's own asks for is left out."""
        return cls._from_config(config)  # type: ignore[attr-defined]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """input_ids, attention_mask [B, L]. Returns an output whose `logits` [B, 1] are the scores."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        body = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        hidden_BLd = body(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        # Some bodies keep their residual stream in fp32.
        scores_BL1 = self.score(hidden_BLd.to(self.dtype))  # type: ignore[attr-defined]
        place_L = torch.arange(input_ids.shape[1], device=scores_BL1.device)
        last_B = (place_L if attention_mask is None else place_L * attention_mask).expand(input_ids.shape).argmax(dim=1)
        return SequenceClassifierOutput(logits=scores_BL1[torch.arange(len(last_B)), last_B])


@cache
def _own_class(body: Any, config_class: Any) -> Any:
    """A class of that form on the body."""
    from transformers import PreTrainedModel

    # The family's abstract class knows how its weights start.
    family = next(base for base in body.__mro__[1:] if issubclass(base, PreTrainedModel))
    return type(
        f"{config_class.__name__.removesuffix('Config')}ForSequenceClassification",
        (_OneScore, family),
        {
            # Under this name a model with a head keeps its body.
            "base_model_prefix": body.base_model_prefix or "model",
            "config_class": config_class,
            "__module__": __name__,
        },
    )
