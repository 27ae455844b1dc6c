"""Examples: token ids that a stage trains on. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from core.data.records import Record
from core.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Demonstration:
    """Token ids and the weight of each in the loss.

    A token of weight 0 is context only. The first token has weight 0: nothing predicts it.
    """

    ids: Sequence[int]
    weights: Sequence[float]
    source: str = ""
    """What the record came from: its named source, or its file."""

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Sequence[int]) -> Demonstration:
        """A prompt as context, and a completion whose every token has weight 1."""
        return cls([*prompt, *completion], [0.0] * len(prompt) + [1.0] * len(completion))

    @property
    def tokens(self) -> int:
        """Real tokens in a forward pass."""
        return len(self.ids)

    @property
    def trained(self) -> int:
        """Tokens with a weight."""
        return len(self.weights) - self.weights.count(0)


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse completion, and how much better (0 where unknown)."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0

    @property
    def tokens(self) -> int:
        """Real tokens in a packed forward pass: the prompt counts once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample completions for, and the record it came from."""

    ids: list[int]
    record: Record

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)


@dataclass
class StageData:
    """What a stage trains on and what it holds out."""

    train: Sequence[Any]
    heldout: Sequence[Any] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    """Numbers of the examples that were made, told in result.json and as metrics `data/…` of step 0."""


def check_trained(examples: Sequence[Demonstration], eos: int) -> None:
    """Refuse a training set that never teaches to stop. An empty one is refused for every stage alike, later.

    Raises: DataError.
    """
    ends = (
        token == eos and weight > 0
        for example in examples
        for token, weight in zip(example.ids, example.weights, strict=True)
    )
    if examples and not any(ends):
        raise DataError(
            "the end-of-turn token is never trained: the model would not learn to stop",
            "stage.too_long and the weights of the data",
            "use stage.too_long=drop or cut_start, raise model.max_length, or give final turns a weight above 0",
        )


def split_by_tokens(items: Sequence[T], tokens: Callable[[T], int], limit: int) -> list[list[T]]:
    """Items in order, cut into runs of at most `limit` tokens; an item over the limit stands alone."""
    runs: list[list[T]] = []
    filled = 0
    for item in items:
        size = tokens(item)
        if not runs or filled + size > limit:
            runs.append([])
            filled = 0
        runs[-1].append(item)
        filled += size
    return runs
