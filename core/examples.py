"""From records to examples: token ids that a stage trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from core.encoding import encode_all
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

    train: Sequence[Any]
    heldout: Sequence[Any] = field(default_factory=list)


def demonstrations(run: StageRun, records: Sequence[Record]) -> Sequence[Demonstration]:
    """Records with a completion (or a chosen one) as examples; those over model.max_length go to quarantine."""

    def encode(part: Sequence[Record]) -> list[Demonstration | str]:
        prompts = run.codec.prompts([record.prompt for record in part])
        completions = run.codec.completions([record.completion or record.chosen or "" for record in part])
        made = (Demonstration.of(*ids) for ids in zip(prompts, completions, strict=True))
        return [too_long(run, example.tokens) or example for example in made]

    return encode_all(run, records, encode)


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


def too_long(run: StageRun, tokens: int) -> str:
    """Why an example of so many tokens is left out; empty when it fits."""
    limit = run.cfg.model.max_length
    return f"{tokens} tokens, more than model.max_length={limit}" if tokens > limit else ""


def _fits(run: StageRun, record: Record, tokens: int) -> bool:
    reason = too_long(run, tokens)
    if reason:
        run.drop(record, reason)
    return not reason


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
