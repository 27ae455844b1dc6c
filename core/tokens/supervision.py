"""Which tokens of a demonstration are trained, and how much. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from core.data.records import Message


class TrainOn(str, Enum):
    """Which turns have a weight where neither role nor message names one."""

    last = "last"
    """The last assistant turn."""
    assistant = "assistant"
    """Every assistant turn."""
    all = "all"
    """Every token, the template's text among them."""


class TooLong(str, Enum):
    """What happens to a demonstration that is longer than model.max_length."""

    drop = "drop"
    """It goes to quarantine."""
    cut_end = "cut_end"
    """Its first model.max_length tokens stay."""
    cut_start = "cut_start"
    """Its last model.max_length tokens stay."""


@dataclass(frozen=True)
class Supervision:
    """Which tokens of a demonstration are trained, and how much.

    A turn's weight is, in this order: its own (Message.weight, Record.weight), that of its role in `role_weights`,
    1 for an assistant turn. `last` leaves earlier assistant turns without weight unless they bring their own;
    `all` gives weight 1 to every token that nothing else weighs, the template's text among them.
    """

    train_on: TrainOn = TrainOn.last
    role_weights: Mapping[str, float] = field(default_factory=dict)
    """Role to the weight of its turns."""
    too_long: TooLong = TooLong.drop

    @property
    def rest(self) -> float:
        """Weight of what nothing else weighs."""
        return 1.0 if self.train_on is TrainOn.all else 0.0

    def weights(self, turns: Sequence[Message]) -> list[float]:
        """Weight of each turn's tokens."""
        last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        weights = []
        for index, turn in enumerate(turns):
            weight = self.role_weights.get(turn.role, 1.0 if turn.role == "assistant" else self.rest)
            if turn.role == "assistant" and self.train_on is TrainOn.last and index != last:
                weight = 0.0
            weights.append(weight if turn.weight is None else turn.weight)
        return weights


LAST_TURN = Supervision()
"""The completion and its end-of-turn token, whole."""
