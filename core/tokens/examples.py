"""From records to examples: token ids that a stage trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from core.data.records import Message, Record
from core.errors import DataError
from core.tokens.codec import TEMPLATE_TEXT, Dialogue, check_embedding, doubled_bos
from core.tokens.encoding import encode_all
from core.tokens.supervision import LAST_TURN, Supervision, TooLong

if TYPE_CHECKING:
    from core.tokens.codec import ChatCodec
    from core.training.run import StageRun

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


def demonstrations(
    run: StageRun, records: Sequence[Record], supervision: Supervision = LAST_TURN
) -> Sequence[Demonstration]:
    """Records with a completion (or a chosen one) as examples; what cannot be trained on goes to quarantine.

    A dialogue that the template does not render turn by turn becomes one example for each trained turn.
    Raises: ModelError for a token without a row in the embedding.
    """

    def encode(part: Sequence[Record]) -> list[list[Demonstration] | str]:
        return _encode(run.codec, part, supervision, run.cfg.model.max_length)

    settings = {
        "train_on": supervision.train_on.value,
        "role_weights": dict(supervision.role_weights),
        "too_long": supervision.too_long.value,
    }
    return encode_all(run, records, encode, settings)


def _encode(
    codec: ChatCodec, records: Sequence[Record], supervision: Supervision, limit: int
) -> list[list[Demonstration] | str]:
    """The examples of each record, or why it has none."""
    layouts, owners = [], []
    answers: list[list[Demonstration] | str] = []
    for place, record in enumerate(records):
        answers.append([])
        turns = _dialogue(record)
        weights = supervision.weights(turns)
        weighed = [index for index, weight in enumerate(weights) if weight != supervision.rest]
        marked = [index for index, turn in enumerate(turns) if turn.role == "assistant" and weights[index]]
        if not marked:
            answers[place] = "no assistant turn has a weight"
            continue
        marked = sorted({*marked, *(index for index in weighed if turns[index].role == "assistant")})
        try:
            made = codec.lay_out(turns, record.tools, marked, [index for index in weighed if index not in marked])
        except DataError as error:
            answers[place] = f"{error.what} ({error.where})"
            continue
        if len(made) > 1 and supervision.rest:
            answers[place] = "the chat template does not render turn by turn, so train_on=all would count turns twice"
            continue
        layouts += made
        owners += [(place, weights)] * len(made)
    largest = -1
    for (place, weights), dialogue in zip(owners, codec.encode(layouts), strict=True):
        example = _weighed(records[place], dialogue, weights, supervision.rest)
        example, problem = _within(example, limit, supervision.too_long)
        problem = problem or fault(example, codec)
        answer = answers[place]
        if problem:
            answers[place] = problem
        elif not isinstance(answer, str):
            answer.append(example)
            largest = max(largest, *example.ids)
    check_embedding(codec, largest, "the tokens of the data")
    return answers


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


def fault(example: Demonstration, codec: ChatCodec) -> str:
    """Why an example would train wrongly; empty when it would not."""
    if not example.trained:
        return "no token has a weight (cut off, or all weights are 0)"
    if doubled_bos(codec, example.ids):
        return "begins with two BOS tokens"
    filling = (
        codec.pad != codec.eos
        and codec.pad in example.ids
        and any(token == codec.pad and weight for token, weight in zip(example.ids, example.weights, strict=True))
    )
    return (
        f"a trained token is the padding token '{codec.tokenizer.convert_ids_to_tokens(codec.pad)}'" if filling else ""
    )


def _dialogue(record: Record) -> tuple[Message, ...]:
    """All turns of a record, the chosen completion of a pair as the final one."""
    if record.completion is None and record.chosen is not None:
        return (*record.prompt, Message("assistant", record.chosen, record.weight, record.calls, record.reasoning))
    return record.turns()


def _weighed(record: Record, dialogue: Dialogue, weights: Sequence[float], rest: float) -> Demonstration:
    by_owner = {TEMPLATE_TEXT: rest, **dict(enumerate(weights))}
    of = list(map(by_owner.__getitem__, dialogue.owners))
    of[0] = 0.0
    return Demonstration(dialogue.ids, of, source_of(record))


def source_of(record: Record) -> str:
    """Name of what a record came from: its source, or its file, without folder and ending."""
    return Path(str(record.meta.get("source") or record.meta.get("file", ""))).name.partition(".")[0]


def _within(example: Demonstration, limit: int, policy: TooLong) -> tuple[Demonstration, str]:
    """The example cut to `limit` tokens, and why it cannot be used; empty when it can."""
    if example.tokens <= limit:
        return example, ""
    if policy is TooLong.drop:
        return example, f"{example.tokens} tokens, more than model.max_length={limit}"
    if policy is TooLong.cut_end:
        return replace(example, ids=example.ids[:limit], weights=example.weights[:limit]), ""
    return replace(example, ids=example.ids[-limit:], weights=[0.0, *example.weights[1 - limit :]]), ""


def encoded_prompts(
    codec: ChatCodec, records: Sequence[Record], refused: Callable[[Record, str], None]
) -> list[tuple[Record, list[int]]]:
    """Records with the token ids of their prompts; `refused` is told of those that the template refuses, and why."""
    kept, texts = [], []
    for record in records:
        try:
            texts.append(codec.layout.prompt(record.prompt, record.tools))
            kept.append(record)
        except DataError as error:
            refused(record, f"{error.what} ({error.where})")
    return list(zip(kept, codec.tokenise(texts), strict=True))


def pairs(run: StageRun, records: Sequence[Record]) -> list[Pair]:
    """Preference records as examples; pairs of which one side is over model.max_length go to quarantine."""
    kept = encoded_prompts(run.codec, records, run.drop)
    chosen = run.codec.completions([record.chosen or "" for record, _ in kept])
    rejected = run.codec.completions([record.rejected or "" for record, _ in kept])
    examples = []
    for (record, prompt), better, worse in zip(kept, chosen, rejected, strict=True):
        if _fits(run, record, len(prompt) + max(len(better), len(worse))):
            examples.append(Pair(prompt, better, worse, record.margin or 0.0))
    return examples


def prompts(run: StageRun, records: Sequence[Record], room: int) -> list[Prompt]:
    """Prompts that leave `room` tokens to answer within model.max_length; longer ones go to quarantine."""
    encoded = encoded_prompts(run.codec, records, run.drop)
    return [Prompt(ids, record) for record, ids in encoded if _fits(run, record, len(ids) + room)]


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
