"""Values of a row to texts and messages: turns of either style, typed content parts, transcripts. Torch-free."""

from __future__ import annotations

import json
import re
from typing import Any

from core.records import Message

TURN_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
"""Names that files give to roles, in lower case. A call of a function is the assistant's turn."""


CONTENT_PARTS = ("text", "input_text", "output_text", "reasoning", "thinking", "tool_call")
"""Types of content parts that are text."""


class RowError(ValueError):
    """The row does not fit its dialect. `field` is the canonical field at fault, if it is one."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason, field)
        self.reason, self.field = reason, field


def kind_of(value: object) -> str:
    """What a JSON value is called in reasons."""
    names = {"str": "text", "NoneType": "null", "dict": "an object", "list": "a list", "bool": "true or false"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def to_text(value: object, field: str) -> str:
    """A text as it stands. Raises: RowError for anything else."""
    if isinstance(value, str):
        return value
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not text", field)


def to_messages(value: object, field: str) -> tuple[Message, ...]:
    """Turns {role, content} or {from, value}, one or a list of them, as messages.

    Typed content parts are joined: text as it stands, reasoning between <think> tags, tool calls as JSON lines; the
    `tool_calls` of a message come after its content.
    Raises: RowError for unknown roles, content that is no text (images), and other types.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise RowError(f"wrong type: {field} is {kind_of(value)}, not a list of messages", field)
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError(f"wrong type: {field} holds {kind_of(turn)}, not messages", field)
        name = turn.get("role", turn.get("from"))
        role = TURN_ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise RowError(f"unknown role {name!a} in {field}", field)
        content = turn.get("content", turn.get("value"))
        if type(content) is not str or len(turn) > 2:
            content = _content(turn, content, field)
        messages.append(Message(role, content))
    return tuple(messages)


def _content(turn: dict[str, Any], content: object, field: str) -> str:
    calls = turn.get("tool_calls")
    parts = content if isinstance(content, list) else [content] if content is not None else []
    if not isinstance(calls, list) or not calls:
        calls = []
        if content is None:
            raise RowError(f"a message without content in {field}", field)
    pieces: list[str] = []
    reasoning = turn.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        pieces.append(_think(reasoning))
    joins = False  # texts side by side are one text; anything else gets a line of its own
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in CONTENT_PARTS:
            raise RowError(f"content part of type {kind!a} in {field} is not supported", field)
        value = part.get(kind, part.get("value", part.get("text"))) if isinstance(part, dict) else part
        if not isinstance(value, str):
            raise RowError(f"wrong type: content in {field} is {kind_of(value)}, not text", field)
        is_text = kind.endswith("text")
        if joins and is_text:
            pieces[-1] += value
        else:
            pieces.append(value if is_text or kind == "tool_call" else _think(value))
        joins = is_text
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else call
        pieces.append(function if isinstance(function, str) else json.dumps(function, ensure_ascii=False))
    return "\n".join(piece for piece in pieces if piece)


def _think(text: str) -> str:
    return f"<think>\n{text}\n</think>\n"


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_transcript(value: object) -> bool:
    """Whether a text is turns after "Human:" and "Assistant:", as in HH-RLHF (Bai et al. 2022, arXiv:2204.05862)."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def from_transcript(value: object, field: str) -> tuple[Message, ...]:
    """Messages of a transcript. White space around a turn is dropped; turns of one speaker side by side are one, as
    most chat templates want them in alternation. Raises: RowError when it is none."""
    if not is_transcript(value):
        raise RowError(f"wrong type: {field} is {kind_of(value)}, not a transcript of Human: and Assistant:", field)
    pieces = _TURN.split(to_text(value, field))
    messages: list[Message] = []
    for who, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = "user" if who == "Human" else "assistant", piece.strip()
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}".strip()
        messages.append(Message(role, content))
    return tuple(messages)
