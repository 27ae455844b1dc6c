"""From records to examples: token ids that a stage trains on, and the order in which steps take them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from core.records import Record

if TYPE_CHECKING:
    from core.run import StageRun

T = TypeVar("T")


@dataclass(frozen=True)
class Demonstration:
    """Token ids and the weight of each in the loss.

    A token of weight 0 is context only. The first token has weight 0: nothing predicts it.
    """

    ids: Sequence[int]
    weights: Sequence[float]

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
        return sum(weight != 0 for weight in self.weights)


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

    train: list[Any]
    heldout: list[Any] = field(default_factory=list)


def demonstrations(run: StageRun, records: Sequence[Record]) -> list[Demonstration]:
    """Records with a completion (or a chosen one) as examples; those over model.max_length go to quarantine."""
    rows = [(record, record.completion or record.chosen or "") for record in records]
    prompts = run.codec.prompts([record.prompt for record, _ in rows])
    completions = run.codec.completions([text for _, text in rows])
    examples = []
    for (record, _), prompt, completion in zip(rows, prompts, completions, strict=True):
        example = Demonstration.of(prompt, completion)
        if _fits(run, record, example.tokens):
            examples.append(example)
    return examples


def pairs(run: StageRun, records: Sequence[Record]) -> list[Pair]:
    """Preference records as examples; pairs of which one side is over model.max_length go to quarantine."""
    prompts = run.codec.prompts([record.prompt for record in records])
    chosen = run.codec.completions([record.chosen or "" for record in records])
    rejected = run.codec.completions([record.rejected or "" for record in records])
    examples = []
    for record, prompt, better, worse in zip(records, prompts, chosen, rejected, strict=True):
        if _fits(run, record, len(prompt) + max(len(better), len(worse))):
            examples.append(Pair(prompt, better, worse, record.margin or 0.0))
    return examples


def prompts(run: StageRun, records: Sequence[Record], room: int) -> list[Prompt]:
    """Prompts that leave `room` tokens to answer within model.max_length; longer ones go to quarantine."""
    encoded = run.codec.prompts([record.prompt for record in records])
    return [
        Prompt(ids, record) for record, ids in zip(records, encoded, strict=True) if _fits(run, record, len(ids) + room)
    ]


def _fits(run: StageRun, record: Record, tokens: int) -> bool:
    limit = run.cfg.model.max_length
    if tokens > limit:
        run.drop(record, f"{tokens} tokens, more than model.max_length={limit}")
    return tokens <= limit


def step_items(items: Sequence[T], step: int, batch_size: int, seed: int) -> list[T]:
    """The items of step `step`: consecutive slices of a fresh shuffle for each epoch, crossing epochs seamlessly.

    Depends on its arguments alone, so a resumed run sees what the straight run saw.
    """
    count = len(items)
    start = step * batch_size
    picked: list[T] = []
    while len(picked) < batch_size:
        epoch, offset = divmod(start + len(picked), count)
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        picked += [items[i] for i in order[offset : offset + batch_size - len(picked)]]
    return picked


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
