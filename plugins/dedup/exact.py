"""The transform `dedup_exact`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.api import Record, TextPart, TransformContext, Transformed, texts_of, words_of
from plugins.dedup import ExactConfig, place


def build(config: ExactConfig) -> Callable[[Sequence[Record], TransformContext], Transformed]:
    """The transform."""

    def key(record: Record) -> tuple[object, ...]:
        texts = texts_of(record, config.of)
        system = [message.content for message in record.prompt if message.role == "system"]
        if config.of is not TextPart.completion:
            texts = [*system, *texts]
        said = tuple(tuple(words_of(text)) or text for text in texts) if config.loose else tuple(texts)
        return said if config.of is TextPart.prompt else (*said, record.label)

    def apply(records: Sequence[Record], context: TransformContext) -> Transformed:
        first = {key(record): f"equal to a held-out record: {place(record)}" for record in context.heldout}
        outcome = Transformed([])
        for record in records:
            own = key(record)
            if own in first:
                outcome.dropped.append((record, first[own]))
            else:
                first[own] = f"equal to an earlier record: {place(record)}"
                outcome.records.append(record)
        return outcome

    return apply
