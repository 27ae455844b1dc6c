"""What stands beside a question in columns of its own: passages to answer from, and the turns before it. Torch-free."""

from __future__ import annotations

from typing import Any

from core.data.records import Message
from core.data.row_values import RowError, is_filled, kind_of, parsed, to_text
from core.data.turns import from_transcript, is_transcript, to_messages

_PASSAGE_TEXTS = ("text", "content", "contents", "passage", "body", "document", "page_content", "paragraph",
                  "paragraph_text", "snippet", "context", "abstract")  # fmt: skip
_PASSAGE_TITLES = ("title", "name", "heading", "header")
_ASKS = ("user", "human", "question", "prompt", "query", "instruction", "input", "q")
_ANSWERS = ("assistant", "gpt", "bot", "model", "answer", "response", "output", "completion", "a")


def to_context(value: object, field: str) -> str:
    """Passages as one text, with empty lines between: a text, a list of texts or of objects with a title, or lists of
    titles and sentences (HotpotQA). Raises: RowError for anything else."""
    if not is_filled(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("contexts"), list):
        value = value["contexts"]
    if isinstance(value, dict) and isinstance(value.get("title"), list) and isinstance(value.get("sentences"), list):
        value = [list(one) for one in zip(value["title"], value["sentences"], strict=False)]
    items = value if isinstance(value, list) else [value]
    return "\n\n".join(to_passage(item, field) for item in items if is_filled(item))


def to_passage(value: object, field: str) -> str:
    """One passage: a text, a list of a title and sentences, or an object with a text and maybe a title.
    Raises: RowError for anything else."""
    if isinstance(value, dict):
        text = next((value[name] for name in _PASSAGE_TEXTS if is_filled(value.get(name))), None)
        title = next((value[name] for name in _PASSAGE_TITLES if isinstance(value.get(name), str)), "")
        if isinstance(text, list) and all(isinstance(piece, str) for piece in text):
            text = " ".join(text)
        if isinstance(text, str):
            return f"{title}\n{text}" if title else text
        raise RowError(f"wrong type: {field} holds an object without a text", field)
    if isinstance(value, list) and value:
        pieces = [value[0], *value[1]] if len(value) == 2 and isinstance(value[1], list) else value
        if all(isinstance(piece, str) for piece in pieces):
            return f"{pieces[0]}\n{' '.join(piece.strip() for piece in pieces[1:])}".rstrip()
    return to_text(value, field)


def to_history(value: object, field: str) -> tuple[Message, ...]:
    """Turns before a question: pairs of what was asked and answered (lists of two, or objects), texts in turn of which
    the last is the assistant's, messages, a transcript, or one of these as JSON text.
    Raises: RowError for anything else."""
    if not is_filled(value):
        return ()
    if isinstance(value, str):
        if not value.strip():
            return ()
        if is_transcript(value):
            return from_transcript(value, field)
        value = parsed(value)
    if not isinstance(value, list):
        raise RowError(f"wrong type: {field} is {kind_of(value)}, not a list of turns", field)
    items = [item for item in value if is_filled(item)]
    if all(isinstance(item, str) for item in items):
        roles = ("assistant", "user")
        return tuple(Message(roles[(len(items) - 1 - place) % 2], text) for place, text in enumerate(items))
    if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items):
        return to_messages(items, field)
    messages: list[Message] = []
    for item in items:
        for role, said in zip(("user", "assistant"), _exchange(item, field), strict=True):
            if said is not None and to_text(said, field).strip():
                messages.append(Message(role, to_text(said, field)))
    return tuple(messages)


def _exchange(item: object, field: str) -> tuple[Any, Any]:
    """What was asked and what was answered."""
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, dict):
        found = [next((item[name] for name in names if name in item), None) for names in (_ASKS, _ANSWERS)]
        if any(side is not None for side in found):
            return found[0], found[1]
    raise RowError(f"{field} holds {kind_of(item)}, not pairs of a question and its answer", field)
