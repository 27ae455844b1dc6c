"""Raw text for training and scoring: documents to token ids, to chunks, to examples; perplexity of a held-out text.

A document is [BOS] text EOS, BOS only where the tokenizer itself would put one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from typing_extensions import TypeVar, override

from core.api import ConfigError, Evaluation, LossOutput, Record, Section, StageResult, html_table, markdown_table
from core.torch_api import ChatCodec, Demonstration, Models, Stage, StageData, StageRun
from plugins.sft.stage import WeightedRow, weighted_nll, weighted_rows
from plugins.shared.text_config import TextStageConfig


def end_id(codec: ChatCodec, token: str | None) -> int:
    """Id of the token that closes a document: the tokenizer's EOS, unless a config names another one.

    Raises ConfigError for a token that the vocabulary lacks.
    """
    if token is None:
        return codec.eos
    tokenizer = codec.tokenizer
    if token not in tokenizer.get_vocab():
        raise ConfigError(f"the tokenizer has no token '{token}'", "stage.end_token", "name a token of the vocabulary")
    return int(tokenizer.convert_tokens_to_ids(token))


def token_ids(codec: ChatCodec, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, nothing put before or behind them."""
    if not texts:
        return []
    ids: list[list[int]] = codec.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def closed_texts(
    codec: ChatCodec, records: Sequence[Record], end_token: str | None, drop: Callable[[Record, str], None]
) -> list[list[int]]:
    """Text EOS of each record with a text; `drop` is told of those whose text is empty."""
    kept = []
    for record in records:
        if (record.text or "").strip():
            kept.append(record)
        else:
            drop(record, "empty text")
    end = end_id(codec, end_token)
    return [[*ids, end] for ids in token_ids(codec, [record.text or "" for record in kept])]


def document_ids(
    codec: ChatCodec, records: Sequence[Record], end_token: str | None, drop: Callable[[Record, str], None]
) -> list[list[int]]:
    """[BOS] text EOS of each record with a text; `drop` is told of those whose text is empty."""
    return [[*codec.begin_ids, *ids] for ids in closed_texts(codec, records, end_token, drop)]


def cut(ids: Sequence[int], chunk_tokens: int) -> list[list[int]]:
    """Consecutive chunks of at most `chunk_tokens` tokens, each beginning with the last token of the one before.

    That token is context in the later chunk, so that every token but the first is trained exactly once.
    """
    stride = chunk_tokens - 1
    return [list(ids[start : start + chunk_tokens]) for start in range(0, max(len(ids) - 1, 0), stride)]


def chunked(documents: Sequence[Sequence[int]], chunk_tokens: int, join: bool) -> list[list[int]]:
    """Chunks of documents in their order, [2 .. chunk_tokens] tokens each.

    join: cut the documents as one stream, so that a chunk may hold the end of one and the beginning of the next, which
        then see each other; otherwise no chunk mixes documents, and the last one of each is shorter.
    """
    if join:
        return cut([token for document in documents for token in document], chunk_tokens)
    return [chunk for document in documents for chunk in cut(document, chunk_tokens)]


def text_example(chunk: Sequence[int]) -> Demonstration:
    """A chunk as an example: every token but the first has weight 1."""
    return Demonstration(chunk, [0.0] + [1.0] * (len(chunk) - 1))


@dataclass(frozen=True)
class HeldText:
    """A text that is scored and never trained on."""

    examples: list[Demonstration]
    bytes: int
    """Length of its documents in UTF-8."""


def held_text(
    run: StageRun,
    codec: ChatCodec,
    records: Sequence[Record],
    end_token: str | None,
    chunk_tokens: int,
    most_tokens: int,
) -> HeldText:
    """Documents drawn from the run's seed until they hold `most_tokens` tokens, chunked apart."""
    drawn = [record for record in records if (record.text or "").strip()]
    random.Random(run.seed_for("held text")).shuffle(drawn)
    kept: list[list[int]] = []
    size = 0
    for record, ids in zip(drawn, document_ids(codec, drawn, end_token, run.log.drop), strict=True):
        if kept and sum(map(len, kept)) + len(ids) > most_tokens:
            break
        kept.append(ids)
        size += len((record.text or "").encode())
    return HeldText([text_example(chunk) for chunk in chunked(kept, chunk_tokens, join=False)], size)


def text_metrics(models: Models, text: HeldText, limit: int) -> dict[str, float]:
    """`heldout_loss` in nats a token, `heldout_perplexity` = exp(loss), and `heldout_bits_per_byte`, which stays
    comparable when the vocabulary changes. Empty for an empty text.

    limit: most tokens of one forward pass.
    """
    if not text.examples:
        return {}
    loss = sum(weighted_nll(models, row).item() for row in weighted_rows(text.examples, limit))
    trained = sum(example.trained for example in text.examples)
    return {
        "heldout_loss": loss,
        "heldout_perplexity": math.exp(min(loss, 700.0)),
        "heldout_bits_per_byte": loss * trained / math.log(2) / text.bytes,
    }


@dataclass
class TextData(StageData):
    """Examples of raw text, and the text that is scored."""

    held: HeldText = field(default_factory=lambda: HeldText([], 0))


C = TypeVar("C", bound=TextStageConfig)
D = TypeVar("D", bound=TextData, default=TextData)


class TextStage(Stage[C, D, WeightedRow]):
    """Training on raw text: its likelihood, and that of a held-out text."""

    @override
    def compute_loss(self, models: Models, micro_batch: WeightedRow) -> LossOutput:
        """Negative log-likelihood of the tokens with a weight."""
        return LossOutput(weighted_nll(models, micro_batch))

    @override
    def evaluate(self, models: Models, data: D, step: int) -> Evaluation:
        """Loss, perplexity and bits per byte of the held-out text."""
        return Evaluation(text_metrics(models, data.held, self.cfg.micro_batch_tokens))


def score_section(result: StageResult, note: str = "") -> Section | None:
    """The held-out text before and after as a part of the report; None where it was not scored.

    note: a sentence below the table, without characters that HTML knows.
    """
    before, after = result.first, result.last
    measures = {"perplexity": "heldout_perplexity", "bits per byte": "heldout_bits_per_byte"}
    rows = [
        (label, f"{before[name]:.4g}", f"{after[name]:.4g}")
        for label, name in measures.items()
        if name in before and name in after
    ]
    if not rows:
        return None
    header = ("held-out text", "before", "after")
    return Section(
        "Held-out text",
        html_table(header, rows) + (f"<p>{note}</p>" if note else ""),
        markdown_table(header, rows) + (f"\n\n{note}" if note else ""),
    )
