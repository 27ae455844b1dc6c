"""The canonical record that every stage trains on, whatever the file's dialect, and the rows that were left out.
Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant", "tool")


class Message(NamedTuple):
    """One turn of a dialogue."""

    role: str
    """system, user, assistant or tool."""
    content: str
    """Text; of a tool its answer."""
    weight: float | None = None
    """Weight of the turn's tokens in a supervised loss; None leaves it to the stage."""
    calls: tuple[str, ...] = ()
    """Tool calls of an assistant turn, each a JSON object {"name", "arguments"}."""
    reasoning: str = ""
    """What an assistant turn thinks before its content."""

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates take: `role`, `content`, and where there are any `tool_calls` and
        `reasoning_content`."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            message["tool_calls"] = [{"type": "function", "function": json.loads(call)} for call in self.calls]
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return message


class Span(NamedTuple):
    """Feedback on a part of a completion: characters start..end (end excluded)."""

    start: int
    end: int
    label: str
    """What is said of it, e.g. a kind of error."""
    note: str = ""
    """A remark in words."""


class Step(NamedTuple):
    """One step of a worked completion and its label, where it has one."""

    text: str
    label: float | None = None
    """As the data gives it, e.g. 1 for a right step and -1 for a wrong one."""


@dataclass(frozen=True)
class Record:
    """One row in canonical form; fields that the row does not bring are None.

    `prompt` holds all messages before the final assistant turn, whose text is the `completion` (or, of a preference
    pair, `chosen` and `rejected`).
    """

    prompt: tuple[Message, ...] = ()
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: float | None = None
    """How much better `chosen` is, in the units of whoever scored it."""
    answer: str | None = None
    """Gold answer that a reward model can check."""
    text: str | None = None
    """Raw text without turns."""
    label: bool | None = None
    """Whether `completion` is a good one."""
    score: float | None = None
    """Score of `completion`."""
    weight: float | None = None
    """Weight of the completion's tokens in a supervised loss; None leaves it to the stage."""
    calls: tuple[str, ...] = ()
    """Tool calls of the final turn, as in Message."""
    reasoning: str = ""
    """Thinking of the final turn, as in Message."""
    tools: tuple[str, ...] = ()
    """Tools that the assistant may call, each the JSON schema of a function."""
    rationale: str | None = None
    """Worked reasoning towards `answer`, kept apart from the completion."""
    spans: tuple[Span, ...] = ()
    """Feedback on parts of the completion."""
    steps: tuple[Step, ...] = ()
    """The completion's steps, labelled one by one."""
    meta: dict[str, Any] = field(default_factory=dict)
    """`file`, `line` and `source` of the row; `part` counts from 0 where it holds several records; `extra` holds the
    columns that no field stands for."""

    def turns(self) -> tuple[Message, ...]:
        """The whole dialogue: the prompt, and the completion as the final assistant turn."""
        if self.completion is None:
            return self.prompt
        return (*self.prompt, Message("assistant", self.completion, self.weight, self.calls, self.reasoning))

    @property
    def key(self) -> str:
        """SHA-256 in hex of all content, not of where it was read from; equal on every machine.
        Raises: UnicodeEncodeError for text with lone surrogates."""
        cache = self.__dict__
        if "_key" not in cache:
            texts = (self.completion, self.chosen, self.rejected, self.answer, self.text, self.rationale)
            weights = [message.weight for message in self.prompt if message.weight is not None]
            rest = (self.margin, self.label, self.score, self.weight, self.calls, self.reasoning, self.spans,
                    self.steps, weights, self.meta.get("extra"))  # fmt: skip
            others = (
                json.dumps(rest, sort_keys=True, default=str) if any(value not in _ABSENT for value in rest) else ""
            )
            cache["_key"] = _hash((self.prompt_key, *texts, others))
        key: str = cache["_key"]
        return key

    @property
    def prompt_key(self) -> str:
        """SHA-256 in hex of the prompt alone (of the text, for a record without prompt)."""
        cache = self.__dict__
        if "_prompt_key" not in cache:
            said = [part for message in self.prompt for part in (message.role, message.content, *message.calls)]
            cache["_prompt_key"] = _hash((*said, *self.tools) if self.prompt else (self.text,))
        key: str = cache["_prompt_key"]
        return key


_ABSENT: tuple[Any, ...] = (None, (), [], "")


def _hash(texts: Iterable[str | None]) -> str:
    """SHA-256 in hex of a list of texts; their lengths keep ("ab", "c") and ("a", "bc") apart, None and "" too."""
    joined = "".join(["-" if text is None else f"{len(text)}:{text}" for text in texts])
    return hashlib.sha256(joined.encode()).hexdigest()


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 in hex over the keys of the records, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.key.encode())
    return digest.hexdigest()


EXCERPT_CHARS = 200


@dataclass(frozen=True)
class BadRow:
    """A row that became no record."""

    file: str
    line: int
    """Line on which the row starts, counted from 1; for formats without lines the number of the row."""
    reason: str
    row: str
    """The row's first characters."""

    def __post_init__(self) -> None:
        """A reason may quote half a surrogate pair of the row, which no file can hold: it is written as its code."""
        object.__setattr__(self, "reason", self.reason.encode("utf-8", "backslashreplace").decode())

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def excerpt(value: object) -> str:
    """The first characters of a row as valid Unicode: JSON, or the text itself where it was none."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, TypeError, RecursionError):  # keys that are no text, nesting beyond the stack
            value = f"<{type(value).__name__}>"
    return value[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()


def write_quarantine(rows: Sequence[BadRow], path: Path) -> Path | None:
    """Write `rows` as JSON Lines {file, line, reason, row}, beside `path` first and then renamed onto it.
    Returns the path; None, and writes no file, when there are no rows."""
    if not rows:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def answer_kind(answers: Sequence[str | None]) -> str:
    """Kind of answers, as RewardSpec.answers names it: "number", "text", or empty where not all are there."""
    if not answers or not all(answers):
        return ""
    return "number" if all(_is_number(answer) for answer in answers) else "text"


def _is_number(text: str | None) -> bool:
    try:
        float((text or "").replace(",", ""))
    except ValueError:
        return False
    return True
