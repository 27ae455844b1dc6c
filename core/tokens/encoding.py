"""From records to examples: token ids with weights, pairs, prompts. What cannot be trained on goes to quarantine.

Records are tokenised in bulk, on the tokenizer's threads, and kept on the disk where that pays. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import core
from core.data.records import Message, Record, fingerprint
from core.errors import DataError
from core.files import cache_dir, sha256_file
from core.settings.data_schema import Choice
from core.tokens.cache import SHARD_ROWS, SHARD_VERSION, Encode, cached_tokens
from core.tokens.codec import TEMPLATE_TEXT, ChatCodec, Dialogue, check_embedding, doubled_bos
from core.tokens.examples import Demonstration, Pair, Prompt
from core.tokens.supervision import LAST_TURN, Supervision, TooLong

CACHE_ROWS = 50_000
"""data.token_cache=auto keeps the tokens of more records than this on disk."""

TWO_BOS = "begins with two BOS tokens"
"""Why an example is left out."""

_SAY_EVERY_SHARDS = 25


def _silent(_text: str) -> None:
    pass


def _forget(_record: Record, _reason: str) -> None:
    pass


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of records for one stage.

    limit: most tokens of an example. drop: told each record that becomes no example, and why.
    cache: whether token ids are kept on the disk; stage: part of their key. say: told how long work goes.
    """

    codec: ChatCodec
    limit: int
    drop: Callable[[Record, str], None] = _forget
    say: Callable[[str], None] = _silent
    cache: Choice = Choice.never
    stage: str = ""

    def demonstrations(
        self, records: Sequence[Record], supervision: Supervision = LAST_TURN
    ) -> Sequence[Demonstration]:
        """Records with a completion (or a chosen one) as examples.

        A dialogue that the template does not render turn by turn becomes one example for each trained turn.
        Raises: ModelError for a token without a row in the embedding.
        """

        def encode(part: Sequence[Record]) -> list[list[Demonstration] | str]:
            return _encode(self.codec, part, supervision, self.limit)

        settings = {
            "train_on": supervision.train_on.value,
            "role_weights": dict(supervision.role_weights),
            "too_long": supervision.too_long.value,
        }
        return self.encode_all(records, encode, settings)

    def pairs(self, records: Sequence[Record]) -> list[Pair]:
        """Preference records as examples; pairs of which one side is over the limit are dropped."""
        sides = []
        for record, prompt in encoded_prompts(self.codec, records, self.drop):
            try:
                said = (Message("assistant", text or "") for text in (record.chosen, record.rejected))
                finals = [self.codec.layout.final(turn) for turn in said]
            except DataError as error:
                self.drop(record, f"{error.what} ({error.where})")
            else:
                sides.append((record, prompt, finals))
        texts = self.codec.closed([text for _, _, finals in sides for text in finals])
        examples = []
        for (record, prompt, _), better, worse in zip(sides, texts[::2], texts[1::2], strict=True):
            if doubled_bos(self.codec, prompt):
                self.drop(record, TWO_BOS)
            elif self.codec.pad != self.codec.eos and self.codec.pad in (*better, *worse):
                self.drop(record, trained_padding(self.codec))
            elif self.fits(record, len(prompt) + max(len(better), len(worse))):
                examples.append(Pair(prompt, better, worse, record.margin or 0.0))
        return examples

    def prompts(self, records: Sequence[Record], room: int) -> list[Prompt]:
        """Prompts that leave `room` tokens to answer within the limit; longer ones are dropped."""
        encoded = encoded_prompts(self.codec, records, self.drop)
        return [Prompt(ids, record) for record, ids in encoded if self.fits(record, len(ids) + room)]

    def fits(self, record: Record, tokens: int) -> bool:
        """Whether so many tokens are within the limit; the record is dropped where not."""
        if tokens > self.limit:
            self.drop(record, over_limit(tokens, self.limit))
        return tokens <= self.limit

    def encode_all(
        self, records: Sequence[Record], encode: Encode, settings: dict[str, Any] | None = None
    ) -> Sequence[Demonstration]:
        """The examples that `encode` makes of the records; those of which it makes none are dropped.

        settings: JSON values that `encode` depends on beside tokenizer and limit: part of the cache's key.
        """
        with parallel_tokenizers():
            if not self._worth_caching(records):
                made = encode(records)
                refused = [(row, reason) for row, reason in enumerate(made) if isinstance(reason, str)]
                kept = (items for items in made if not isinstance(items, str))
                examples: Sequence[Demonstration] = [item for items in kept for item in items]
            else:
                folder = cache_dir() / "tokens" / self._key(records, settings or {})

                def said(done: int, count: int) -> None:
                    if done == count or done % (_SAY_EVERY_SHARDS * SHARD_ROWS) == 0:
                        self.say(f"tokenised {done} of {count} records into {folder}")

                examples, refused = cached_tokens(folder, records, encode, said, self.say)
        for row, reason in refused:
            self.drop(records[row], reason)
        return examples

    def _worth_caching(self, records: Sequence[Record]) -> bool:
        if self.cache is Choice.auto:
            return len(records) > CACHE_ROWS or not isinstance(records, list)
        return self.cache is Choice.always

    def _key(self, records: Sequence[Record], settings: dict[str, Any]) -> str:
        """Hash of all that the tokens depend on, 24 hex digits."""
        known = getattr(records, "fingerprint", None)
        parts = {
            "records": known or fingerprint(records),
            "tokenizer": tokenizer_fingerprint(self.codec),
            "embedding": self.codec.rows,
            "shards": SHARD_VERSION,
            "max_length": self.limit,
            "stage": self.stage,
            "settings": settings,
            "code": core.__version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def over_limit(tokens: int, limit: int) -> str:
    """Why an example of so many tokens is left out."""
    return f"{tokens} tokens, more than model.max_length={limit}"


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


def fault(example: Demonstration, codec: ChatCodec) -> str:
    """Why an example would train wrongly; empty when it would not."""
    if not example.trained:
        return "no token has a weight (cut off, or all weights are 0)"
    if doubled_bos(codec, example.ids):
        return TWO_BOS
    filling = (
        codec.pad != codec.eos
        and codec.pad in example.ids
        and any(token == codec.pad and weight for token, weight in zip(example.ids, example.weights, strict=True))
    )
    return trained_padding(codec) if filling else ""


def trained_padding(codec: ChatCodec) -> str:
    """Why an example whose trained tokens hold the padding token is left out."""
    return f"a trained token is the padding token '{codec.tokenizer.convert_ids_to_tokens(codec.pad)}'"


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
        return example, over_limit(example.tokens, limit)
    if policy is TooLong.cut_end:
        return replace(example, ids=example.ids[:limit], weights=example.weights[:limit]), ""
    return replace(example, ids=example.ids[-limit:], weights=[0.0, *example.weights[1 - limit :]]), ""


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """Let fast tokenizers use their threads within the block. Elsewhere they are off: they do not survive a fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def tokenizer_fingerprint(codec: ChatCodec) -> str:
    """SHA-256 in hex of the tokenizer's rules, its special tokens and its chat template."""
    tokenizer = codec.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = backend.to_str()
    else:  # a tokenizer in Python: its vocabulary, and the file of its model where it has one
        file = getattr(tokenizer, "vocab_file", None)
        rules = json.dumps([tokenizer.get_vocab(), sha256_file(file) if file else None], sort_keys=True)
    parts = [type(tokenizer).__name__, rules, tokenizer.chat_template, tokenizer.special_tokens_map, codec.eos]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
