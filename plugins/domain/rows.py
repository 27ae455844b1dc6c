"""Training the rows of new tokens alone in the first steps of a run."""

from __future__ import annotations

from torch import Tensor, nn

from core.torch_api import TokenModel


class RowsFirst:
    """In the first steps of a run nothing but the new tokens' rows moves.

    The other parameters get no gradient then, so the optimizer leaves them alone; the old rows of embedding and head
    get a gradient of zero, which without weight decay moves AdamW by nothing: they stay bit for bit.
    """

    def __init__(self, model: TokenModel, new: range, steps: int) -> None:
        self.new, self.steps = new, steps
        self.alone = False
        named = model.trainable()
        embedding = model.base.get_input_embeddings().weight
        matrices = [parameter for _, parameter in named if parameter.shape == embedding.shape]
        deltas = [parameter for name, parameter in named if "trainable_tokens_" in name]
        rows = {id(parameter) for parameter in (*matrices, *deltas)}
        self.others: list[nn.Parameter] = [parameter for _, parameter in named if id(parameter) not in rows]
        if steps:
            for parameter in matrices:
                parameter.register_hook(self._only_new)

    def at(self, step: int) -> None:
        """Make ready for step `step`, counted from 0."""
        self.alone = step < self.steps
        for parameter in self.others:
            parameter.requires_grad_(not self.alone)

    def _only_new(self, gradient: Tensor) -> Tensor:
        """The gradient [V, d] with the old rows at zero."""
        if not self.alone:
            return gradient
        kept = gradient.new_zeros(gradient.shape)
        kept[self.new.start : self.new.stop] = gradient[self.new.start : self.new.stop]
        return kept
