"""From records to what NLFT needs of each: question, gold answer, the model's own answer, a judgement. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.api import Message, Record
from plugins.nlft import Completions, NlftConfig

MARKER = "####"
"""Stands before the final answer in GSM8K and its like."""


@dataclass(frozen=True)
class Attempt:
    """One answer in the making.

    gold: the gold answer as it is shown to the model, "" where there is none. final: what the own answer is compared
    with. answer: the model's own answer as text, None until it is made. right: whether it is; None until it was
    checked. judgement: why it is wrong; None until it is known.
    """

    record: Record
    gold: str
    final: str
    answer: str | None = None
    answer_ids: tuple[int, ...] = ()
    """The own answer as it was sampled; empty where it came as text."""
    right: bool | None = None
    judgement: str | None = None
    tokens: int = 0
    """Tokens of prompt and answer, of one that is not made yet the most it may have."""
    trained: int = 0
    """Those of the answer."""


def final_answer(gold: str) -> str:
    """What stands behind the last `####`, else the whole gold answer."""
    return gold.rpartition(MARKER)[2].strip()


def item_of(record: Record, cfg: NlftConfig) -> Attempt:
    """What a record brings. Of a pair the chosen side is the gold answer and the rejected side a wrong own one."""
    extra = record.meta.get("extra") or {}
    if record.chosen is not None:
        known = record.answer or final_answer(record.chosen)
        return Attempt(record, record.chosen, known, record.rejected, right=None if record.rejected is None else False)
    completion = record.completion or ""
    named, said = extra.get(cfg.gold_column), extra.get(cfg.judgement_column)
    own = cfg.completions is Completions.own or (
        cfg.completions is Completions.auto
        and (
            cfg.gold_column in extra or cfg.judgement_column in extra or bool(record.spans) or record.label is not None
        )
    )
    if not own:
        return Attempt(record, completion, final_answer(record.answer or completion))
    gold = str(named) if named not in (None, "") else record.rationale or record.answer or ""
    final = final_answer(record.answer or gold)
    right, judgement = record.label, None if said is None else str(said).strip()
    if marked(record, cfg):
        right = False
    elif judgement is not None and right is None:
        right = not judgement
    return Attempt(record, gold, final, completion, right=right, judgement=judgement)


def marked(record: Record, cfg: NlftConfig) -> list[tuple[int, int]]:
    """Character ranges of the completion that feedback marks as errors."""
    return [(span.start, span.end) for span in record.spans if not cfg.span_labels or span.label in cfg.span_labels]


def tokens_of_spans(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens share a character with a span; white space alone does not count.

    offsets: the characters [start, end) of each token.
    """
    return [
        any(text[max(start, left) : min(end, right)].strip() for left, right in spans if start < right and left < end)
        for start, end in offsets
    ]


def filled(template: str, **values: str) -> str:
    """The template with `{name}` replaced, in one pass: what is filled in may hold braces of its own."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def conditioned(prompt: Sequence[Message], system: str, template: str, **values: str) -> list[Message]:
    """The prompt with its last message put into the template and the system text before it (behind a system message
    that the prompt has)."""
    *before, last = prompt
    asked = last._replace(content=filled(template, prompt=last.content, **values))
    if not system:
        return [*before, asked]
    if before and before[0].role == "system":
        return [before[0]._replace(content=f"{before[0].content}\n{system}"), *before[1:], asked]
    return [Message("system", system), *before, asked]
