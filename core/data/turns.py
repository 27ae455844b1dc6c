"""Values of a row to texts and messages: turns of either style, typed content parts, transcripts, tools. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from core.data.records import Message
from core.data.row_values import RowError, kind_of, parsed, to_text
from core.data.turn_keys import check_media, turn_thoughts, turn_weight

TURN_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "agent": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "api": "tool",
    "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""Names that files give to roles, in lower case. A call of a function is the assistant's turn."""

CALL_ROLES = ("function_call", "tool_call")
"""Roles whose content is a call."""

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "tool_calls", "function_call")
"""Types of content parts; images and others are refused."""


# 1. Turns.


def to_messages(value: object, field: str) -> tuple[Message, ...]:
    """Turns {role, content} or {from, value}, one or a list of them, as messages.

    Typed content parts are taken apart: texts are joined, reasoning and tool calls go to their own fields. What a tool
    answers may be any JSON. Keys of core.data.turn_keys weigh the turn and say what it thinks. An end of turn that is
    written out is left out, see `without_ends`.
    field: canonical field that the value is for, as errors name it.
    Raises: RowError for unknown roles, content that is no text (images), calls that are no JSON, and other types.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise RowError(f"wrong type: {field} is {kind_of(value)}, not a list of messages", field)
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError(f"wrong type: {field} holds {kind_of(turn)}, not messages", field)
        name = turn.get("role", turn.get("from"))
        name = name.strip().lower() if isinstance(name, str) else name
        role = TURN_ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise RowError(f"unknown role {name!a} in {field}", field)
        content = turn.get("content", turn.get("value"))
        if type(content) is str and len(turn) == 2 and name not in CALL_ROLES:
            messages.append(Message(role, content))
        else:
            messages.append(_message(turn, role, content, field, calling=name in CALL_ROLES))
    return without_ends(messages)


def _message(turn: dict[str, Any], role: str, content: object, field: str, calling: bool) -> Message:
    """A turn with more than a text; its content is a call where it is `calling`."""
    check_media(turn, field)
    calls = list(to_calls(turn.get("tool_calls"), field)) if turn.get("tool_calls") else []
    if isinstance(turn.get("function_call"), dict):
        calls.extend(to_calls(turn["function_call"], field))
    thoughts = turn_thoughts(turn, field)
    if content is None and not calls and not thoughts:
        raise RowError(f"a message without content in {field}", field)
    texts: list[str] = []
    if calling:
        calls.extend(to_calls(content, field))
    elif role == "tool" and not _is_parts(content):
        texts.append(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str))
    else:
        for part in _parts(content):
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            said = part.get(kind, part.get("value", part.get("text"))) if isinstance(part, dict) else part
            if kind in CALL_PARTS:
                calls.extend(to_calls(said, field))
            elif kind not in (*TEXT_PARTS, *REASONING_PARTS):
                raise RowError(f"content part of type {kind!a} in {field} is not supported", field)
            elif not isinstance(said, str):
                shown = kind_of(part if said is None and isinstance(part, dict) else said)
                raise RowError(f"wrong type: content in {field} is {shown}, not text", field)
            else:
                (texts if kind in TEXT_PARTS else thoughts).append(said)
    if role != "assistant" and (calls or thoughts):
        raise RowError(f"a call or reasoning of the {role} in {field}; only the assistant has these", field)
    return Message(role, "".join(texts), turn_weight(turn, field), tuple(calls), "\n".join(filter(None, thoughts)))


def _parts(content: object) -> list[Any]:
    return content if isinstance(content, list) else [content] if content is not None else []


def _is_parts(content: object) -> bool:
    """Whether a tool's content is typed parts, or nothing; else it is any JSON, and stands as text."""
    parts = content if isinstance(content, list) else [content]
    return bool(parts) and all(
        part is None
        or (isinstance(part, dict) and part.get("type") in TEXT_PARTS and ("text" in part or "value" in part))
        for part in parts
    )


END_MARKS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<|return|>", "<|end_of_text|>",
    "<|end_of_turn|>", "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<|eos|>", "<end_of_turn>", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<EOS>", "[EOS]", "<|user_end|>", "<|assistant_end|>",
)  # fmt: skip
"""Ends of a turn that files write out, after some model's tokenizer."""


def without_end(text: str) -> str:
    """The text without written end marks: the end of a turn is the tokenizer's own token, added later."""
    shorter = text.rstrip()
    while shorter and shorter[-1] in ">]" and (mark := next(filter(shorter.endswith, END_MARKS), "")):
        if mark == "</s>" and "<s>" in shorter[1:]:
            break  # text that is struck out in HTML
        text = shorter.removesuffix(mark)
        shorter = text.rstrip()
    return text


def without_ends(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The dialogue without written end marks: those of the assistant, and where it has any, those of the others."""
    kept = [_unended(message) if message.role == "assistant" else message for message in messages]
    if kept != list(messages):
        kept = [message if message.role == "tool" else _unended(message) for message in kept]
    return tuple(kept)


def _unended(message: Message) -> Message:
    text = without_end(message.content)
    return message if text is message.content else message._replace(content=text)


def flat(message: Message) -> str:
    """A message as one text, for fields that hold nothing else: its reasoning between <think> tags, its content, and
    its calls as JSON lines."""
    thoughts = f"<think>\n{message.reasoning}\n</think>\n" if message.reasoning else ""
    return "\n".join(piece for piece in (thoughts, message.content, *message.calls) if piece)


# 2. Tools and calls.


def to_calls(value: object, field: str) -> tuple[str, ...]:
    """Tool calls in any of the usual forms (an object, a list, JSON as text, wrapped in {"function": …}) as JSON
    objects {"name", "arguments"}. Raises: RowError for what is no call."""
    value = parsed(value)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        call = parsed(item)
        call = call.get("function", call) if isinstance(call, dict) else call
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str):
            raise RowError(f"a tool call in {field} is {kind_of(call)} without a name", field)
        arguments = parsed(call.get("arguments", call.get("parameters", {})) or {})
        if not isinstance(arguments, dict):
            raise RowError(f"the arguments of the tool call '{name[:40]}' in {field} are no JSON object", field)
        calls.append(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))
    return tuple(calls)


def to_tools(value: object, field: str) -> tuple[str, ...]:
    """Tools in any of the usual forms (a list, JSON as text, wrapped in {"function": …}) as JSON schemas of functions.
    Raises: RowError for what is no list of tools."""
    value = parsed(value)
    tools = []
    for item in value if isinstance(value, list) else [value]:
        tool = parsed(item)
        tool = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise RowError(f"wrong type: {field} holds {kind_of(tool)}, not functions with a name", field)
        tools.append(json.dumps(_known_properties(tool), ensure_ascii=False))
    return tuple(tools)


def _known_properties(tool: dict[str, Any]) -> dict[str, Any]:
    """A function without parameters that are null: those of other functions, where a table held them all."""
    parameters = tool.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict) or None not in properties.values():
        return tool
    known = {name: schema for name, schema in properties.items() if schema is not None}
    return {**tool, "parameters": {**parameters, "properties": known}}  # type: ignore[dict-item]


def without_foreign(messages: Sequence[Message], tools: object) -> tuple[Message, ...]:
    """The dialogue, its calls without arguments that are null and that the called function does not have."""
    if not tools or not any("null" in call for message in messages for call in message.calls):
        return tuple(messages)
    known: dict[str, Any] = {}
    for text in to_tools(tools, "tools"):
        tool = json.loads(text)
        parameters = tool.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(properties, dict):
            known[tool["name"]] = properties
    return tuple(message._replace(calls=tuple(_own(call, known) for call in message.calls)) for message in messages)


def _own(call: str, known: dict[str, Any]) -> str:
    value = json.loads(call)
    own = known.get(value["name"])
    if own is None:
        return call
    kept = {name: said for name, said in value["arguments"].items() if said is not None or name in own}
    return json.dumps({"name": value["name"], "arguments": kept}, ensure_ascii=False)


# 3. Transcripts.

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
    return without_ends(messages)


def last_turn(messages: Sequence[Message], field: str) -> tuple[tuple[Message, ...], Message]:
    """The messages before the last, and the last, which must be the assistant's and say something.
    Raises: RowError where it is not."""
    *before, last = messages or [Message("assistant", "")]
    if last.role != "assistant":
        raise RowError(f"the last turn of {field} is the {last.role}'s, not the assistant's", field)
    if not last.content.strip() and not last.calls:
        raise RowError("empty completion" if field == "completion" else f"empty completion: {field}", field)
    return tuple(before), last
