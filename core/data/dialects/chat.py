"""Dialects of conversations, and of prompts for them. Torch-free."""

from __future__ import annotations

import json
from typing import Any

from core.data.dialects.fields import has_turns
from core.data.dialects.parts import Values, asked, checked_prompt, conversation
from core.data.records import Message
from core.data.row_values import RowError, from_json, to_text
from core.data.turn_keys import check_media, turn_weight
from core.data.turns import TURN_ROLES, to_calls, to_messages, to_tools, without_ends
from core.platform.specs import DialectSpec


def _conversation(values: Values) -> dict[str, Any]:
    return conversation(to_messages(values["messages"], "messages"), values, "messages")


def _utterances(values: Values) -> dict[str, Any]:
    """Spoken turns, with calls and results of functions as annotations of the turn that they follow. What comes after
    the assistant's last words is left out."""
    messages: list[Message] = []
    for turn in values["messages"]:
        speaker = turn.get("speaker") if isinstance(turn, dict) else None
        role = TURN_ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise RowError(f"unknown role {speaker!a} in messages", "messages")
        check_media(turn, "messages")
        messages.append(Message(role, to_text(turn.get("text"), "messages"), turn_weight(turn, "messages")))
        messages += _annotated(turn.get("annotations") or [])
    while messages and not (messages[-1].role == "assistant" and messages[-1].content):
        messages.pop()
    return conversation(without_ends(messages), values, "messages")


def _annotated(annotations: object) -> list[Message]:
    """Calls and results out of annotations {name, value, context} in the order of a turn (Taskmaster-4)."""
    if not isinstance(annotations, list) or not all(isinstance(note, dict) for note in annotations):
        raise RowError("annotations are no list of objects", "messages")
    messages = []
    called = ""
    for note in annotations:
        kind, value = note.get("name"), note.get("value")
        if kind == "api_call":
            called = to_text(value, "messages")
        elif kind == "request":
            messages.append(Message("assistant", "", None, to_calls({"name": called, "arguments": value}, "messages")))
        elif kind == "response":
            messages.append(Message("tool", to_text(value, "messages")))
    return messages


def _turns(values: Values) -> dict[str, Any]:
    """The first of the user's turns; later ones ask about answers that the row does not hold."""
    first = values["turns"][0]
    prompt = asked(to_text(first.get("content") if isinstance(first, dict) else first, "turns"))
    return {"prompt": checked_prompt(prompt, values)}


def _function_calling(values: Values) -> dict[str, Any]:
    """The first of several dialogues of one row, and the functions that it may call."""
    messages = to_messages(values["messages"][0], "messages")
    return {"prompt": checked_prompt(messages, values), "tools": to_tools(values["tools"], "tools")}


def _reply(values: Values) -> dict[str, Any]:
    """A dialogue and one generated turn, both as JSON texts of turns {role, text | api | response}, and a verdict of 1
    or 0 on the turn (Taskmaster-4)."""
    context = from_json(values["contexts"], "contexts")
    if not isinstance(context, list):
        raise RowError("the context is no list of turns", "contexts")
    turns = [_api_turn(turn) for turn in [*context, from_json(values["generation"], "generation")]]
    score = values["score"]
    verdict = {"label": score == 1} if score in (0, 1) else {}
    return {**conversation(tuple(turns), values, "generation"), "score": float(score), **verdict}


def _api_turn(turn: object) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise RowError("a turn without a role", "contexts")
    role = TURN_ROLES.get(turn["role"].lower())
    if role is None:
        raise RowError(f"unknown role {turn['role']!a}", "contexts")
    api = turn.get("api")
    if isinstance(api, dict):
        calls = [{"name": name, "arguments": arguments} for name, arguments in api.items()]
        return Message(role, "", None, to_calls(calls, "generation"))
    if "response" in turn:
        return Message(role, json.dumps(turn["response"], ensure_ascii=False))
    return Message(role, to_text(turn.get("text"), "contexts"))


def _is_json(kind: type) -> Any:
    def test(value: object) -> bool:
        try:
            return isinstance(value, str) and isinstance(json.loads(value), kind)
        except (ValueError, RecursionError):
            return False

    return test


def _is_dialogues(value: object) -> bool:
    return isinstance(value, list) and bool(value) and has_turns("role")(value[0])


def _is_spoken(value: object) -> bool:
    return has_turns("speaker")(value) and "text" in value[0]  # type: ignore[index]


def _is_turns(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, str) or (isinstance(turn, dict) and "content" in turn) for turn in value)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DIALECTS = (
    DialectSpec(
        "judged_reply", {"contexts": _is_json(list), "generation": _is_json(dict), "score": _is_number}, _reply,
        "a dialogue and a turn as JSON texts, with a reward",
    ),
    DialectSpec(
        "function_calling", {"messages": _is_dialogues, "tools": _is_list}, _function_calling,
        "a question as turns, and functions to call", {"messages": ("question",), "tools": ("function", "functions")},
    ),
    DialectSpec(
        "messages", {"messages": has_turns("role")}, _conversation,
        "turns with `role` and `content`; content may be typed parts",
    ),
    DialectSpec("sharegpt", {"messages": has_turns("from")}, _conversation, "turns with `from` and `value`"),
    DialectSpec(
        "utterances", {"messages": _is_spoken}, _utterances, "turns with `speaker` and `text`, calls as annotations",
        {"messages": ("utterances", "turns", "dialogue", "messages")},
    ),
    DialectSpec("turns", {"turns": _is_turns}, _turns, "the user's turns alone; the first is the prompt"),
)  # fmt: skip
