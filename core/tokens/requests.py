"""Completions as requests for scorers. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.data.records import Message, Record
from core.tokens.codec import ChatCodec
from core.tokens.frames import Said
from core.types import ScoreRequest


def score_request(
    record: Record,
    said: Said,
    prompt_ids: Sequence[int] = (),
    completion_ids: Sequence[int] = (),
    answer: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> ScoreRequest:
    """A completion of a record's prompt, to be scored.

    said: what it says, see `ChatCodec.said`. answer: gold answer where it is not the record's; meta: beside the
    record's.
    """
    return ScoreRequest(
        prompt=record.prompt[-1].content,
        completion=said.answer,
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(completion_ids),
        answer=record.answer if answer is None else answer,
        meta={**record.meta, **(meta or {})},
        thought=said.thought,
        answer_at=said.answer_at,
        messages=tuple(message.as_dict() for message in record.prompt),
        tools=record.tools,
    )


def encoded_again(request: ScoreRequest, codec: ChatCodec, ended: bool) -> ScoreRequest:
    """The request with the token ids that another model's tokenizer and chat template give to its texts.

    ended: whether the completion ended by itself; one that was cut off gets no end of turn.
    Raises: DataError when the template refuses the dialogue.
    """
    turns = [_message(turn) for turn in request.messages] or [Message("user", request.prompt)]
    (prompt,) = codec.prompts([turns], [request.tools])
    final = codec.layout.final(Message("assistant", request.completion, reasoning=request.thought))
    (completion,) = codec.closed([final]) if ended else codec.tokenise([final])
    return replace(request, prompt_ids=tuple(prompt), completion_ids=tuple(completion))


def _message(turn: Mapping[str, Any]) -> Message:
    """A message out of the form that `Message.as_dict` gives."""
    calls = tuple(json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ()))
    return Message(turn["role"], turn["content"], None, calls, turn.get("reasoning_content", ""))


def shown(request: ScoreRequest) -> dict[str, Any]:
    """What a table of samples shows of a request: prompt, thought where there is one, completion, gold answer."""
    thought = {"thought": request.thought} if request.thought else {}
    return {"prompt": request.prompt, **thought, "completion": request.completion, "answer": request.answer}
