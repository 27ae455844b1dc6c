"""How a dialogue becomes text, and which part of it each assistant turn is.

A layout is rendered by the model's own chat template. The part of an assistant turn is what comes between the
rendering of everything before it, its opening included, and the end-of-turn token. That holds only when the shorter
rendering is the beginning of the longer one, which is checked for each dialogue. Where it does not hold, the
template's training twin is tried, as TRL ships them: the same text, but turn by turn.

Where that fails too, the last turn is put together: the template's opening, then the turn in the frame that the
template gives to a plain one (core.tokens.frames), which is what generation sees and must write.

What a template cannot say is said in plain text, see `core.tokens.probing`. Jinja runs in transformers' sandbox, within
the limits of core.tokens.rendering. Torch-free.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.data.records import Message
from core.errors import DataError, ModelError
from core.tokens.probing import NotPrefix, Probe
from core.tokens.rendering import TemplateLimit, check_operators, render_bounded

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'assistant' %}### Response:{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}{% if loop.first %}Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n{% endif %}### Instruction:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:{% endif %}"
)
PRESETS = {"chatml": _CHATML, "alpaca": _ALPACA}
"""Templates that `model.chat_template` takes by name. `chatml` also stands in for a model that has none."""


def preset(name: str, tokenizer: Any) -> str:
    """A template of PRESETS, opened by the BOS token where the tokenizer puts one before plain text."""
    ids = tokenizer("a")["input_ids"]
    with_bos = tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if with_bos else "") + PRESETS[name]


@cache
def training_twin(template: str) -> str | None:
    """TRL's training variant of a template that it knows by its exact text; None for another, or without TRL."""
    spec = find_spec("trl")  # found, not imported: trl takes seconds
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "chat_templates"
    for path in sorted(folder.glob("*.jinja")):
        twin = path.with_name(f"{path.stem}_training.jinja")
        if twin.is_file() and path.read_text(encoding="utf-8") == template:
            return twin.read_text(encoding="utf-8")
    return None


@dataclass(frozen=True)
class DialogueText:
    """A dialogue as text.

    spans: (start, end, turn) of each marked assistant turn, in order; the end-of-turn token stands at `end` and has
        `eos_length` characters.
    contents: (start, end, turn) of the contents of other turns that were asked for.
    """

    text: str
    spans: tuple[tuple[int, int, int], ...]
    eos_length: int
    contents: tuple[tuple[int, int, int], ...] = ()


_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template raises in Python when it is wrong."""


class ChatLayout:
    """Lays dialogues out with one tokenizer's template.

    file: of the template, for messages.
    frame: the text of a final turn between its opening and the end-of-turn token.
    opens_thinking: the opening ends inside a thought that the template leaves out of finished turns.

    Raises: NotPrefix when a plain turn does not continue its opening; DataError for a template that cannot be rendered;
    ModelError for one that is stopped at a limit.
    """

    def __init__(self, tokenizer: Any, file: str = "") -> None:
        self.tokenizer = tokenizer
        self.file = file
        self.eos: str = tokenizer.eos_token
        own = tokenizer.get_chat_template()
        try:
            check_operators(own)
        except TemplateLimit as error:
            raise self._stopped(error, "a look at its text") from None
        probe = Probe(self.render, self.eos)
        twin = training_twin(own)
        self.twin = twin if twin and probe.agrees(twin) else None
        self.native, self.frame, self.opens_thinking = probe.native_and_frame(own)

    # -- rendering ---------------------------------------------------------------------------------------------------

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), opened: bool = False,
        template: str | None = None,
    ) -> str:  # fmt: skip
        """Text of messages in the form chat templates take. Raises DataError when the template refuses them."""
        from jinja2 import TemplateError

        try:
            return render_bounded(
                lambda: self.tokenizer.apply_chat_template(
                    list(messages), tools=list(tools) or None, chat_template=template, add_generation_prompt=opened,
                    tokenize=False,
                )
            )  # fmt: skip
        except TemplateLimit as error:  # ends the run: the next row would be stopped too
            raise self._stopped(error, _where(messages)) from None
        except (TemplateError, *_TEMPLATE_FAULTS) as error:
            raise DataError(
                f"the chat template refuses a dialogue: {_reason(error)}",
                _where(messages),
                "correct the row, or set model.chat_template=FILE with a template that takes such turns",
            ) from error

    def _stopped(self, error: TemplateLimit, where: str) -> ModelError:
        place = f"{self.file}, at {where}" if self.file else where
        mend = "correct the template, or set model.chat_template=FILE with another one"
        return ModelError(f"the chat template {error}", place, mend)

    def prompt(self, turns: Sequence[Message], tools: Sequence[str] = ()) -> str:
        """Text of a dialogue that ends before the assistant's turn, its opening included."""
        messages, schemas, _ = self._messages([self.parted(turn) for turn in turns], tools)
        return self.render(messages, schemas, opened=True)

    def parted(self, turn: Message) -> Message:
        """An assistant's turn with the thought that its text writes out in the field for it, where the template's frame
        parts them, and without a written end of turn."""
        if turn.role != "assistant":
            return turn
        if turn.content.rstrip().endswith(self.eos):
            turn = turn._replace(content=turn.content.rstrip().removesuffix(self.eos))
        said = self.frame.inside(turn.content) if self.frame.parts else None
        if said is None or (not said.answer and not turn.calls):
            return turn
        thoughts = dict.fromkeys(thought for thought in (turn.reasoning.strip(), said.thought) if thought)
        return turn._replace(content=said.answer, reasoning="\n".join(thoughts))

    def final(self, turn: Message) -> str:
        """Text of a final turn, between its opening and the end-of-turn token; calls are left out.

        Raises: DataError for a text that would end inside, or a thought that the template has no place for.
        """
        turn = self.parted(turn)
        self._check_text(turn, None)
        return self.frame.write(turn.reasoning, turn.content.strip() if self.native.trims else turn.content)

    # -- layouts -----------------------------------------------------------------------------------------------------

    def lay_out(
        self, turns: Sequence[Message], tools: Sequence[str], marked: Collection[int], contents: Collection[int] = ()
    ) -> DialogueText:
        """The dialogue up to the end of the last marked assistant turn.

        marked: indices of the assistant turns whose parts are wanted; contents: of other turns.
        Raises: NotPrefix when neither the template nor its twin renders turn by turn; DataError when the template
        refuses the dialogue or rewrites the text of a marked turn.
        """
        turns = [self.parted(turn) for turn in turns[: max(marked) + 1]]
        for index in marked:
            self._check_text(turns[index], index)
        ways = () if self.opens_thinking else (None, self.twin) if self.twin else (None,)
        for template in ways:
            try:
                return self._rendered(turns, tools, marked, contents, template)
            except NotPrefix:
                continue
        return self._put_together(turns, tools, marked, contents)

    def _rendered(
        self,
        turns: Sequence[Message],
        tools: Sequence[str],
        marked: Collection[int],
        contents: Collection[int],
        template: str | None,
    ) -> DialogueText:
        messages, schemas, places = self._messages(turns, tools)
        whole = self.render(messages, schemas, template=template)
        spans = []
        for position, turn in enumerate(places):
            if turn not in marked:
                continue
            opened = self._opening(messages[: position + 1], schemas, template)
            last = position == len(messages) - 1
            closed = whole if last else self.render(messages[: position + 1], schemas, False, template)
            end = closed.find(self.eos, len(opened))
            if not closed.startswith(opened) or end < 0 or not whole.startswith(closed[: end + len(self.eos)]):
                raise NotPrefix
            self._check_segment(turns[turn], messages[position]["content"], closed[len(opened) : end], turn)
            spans.append((len(opened), end, turn))
        text = whole[: spans[-1][1] + len(self.eos)]
        found = self._contents(turns, tools, contents, template, text) if contents else ()
        return DialogueText(text, tuple(spans), len(self.eos), found)

    def _check_segment(self, said: Message, content: str, segment: str, turn: int) -> None:
        """Raise NotPrefix where a marked turn has lost its thought, DataError where its text was changed."""
        if said.reasoning and _squeeze(said.reasoning) not in _squeeze(segment):
            raise NotPrefix
        if content.strip() not in segment and _squeeze(content) not in _squeeze(segment):
            raise DataError(
                f"the chat template rewrites the text of turn {turn + 1}",
                f"the text begins {content[:60]!r}",
                "correct the row, or set model.chat_template=FILE",
            )

    def _put_together(
        self, turns: Sequence[Message], tools: Sequence[str], marked: Collection[int], contents: Collection[int]
    ) -> DialogueText:
        """The last turn behind its opening as generation sees it. Raises NotPrefix for more turns than that one, and
        for calls that only the template can write."""
        messages, schemas, places = self._messages(turns, tools)
        *_, last = places
        said = turns[last]
        if list(marked) != [last] or (said.calls and self.native.tools):
            raise NotPrefix
        opened = self._opening(messages, schemas, None)
        content = _with_calls(said) if said.calls else said.content
        written = self.frame.write(said.reasoning, content.strip() if self.native.trims else content)
        text = f"{opened}{written}{self.eos}"
        found = self._contents(turns, tools, contents, None, text) if contents else ()
        return DialogueText(text, ((len(opened), len(text) - len(self.eos), last),), len(self.eos), found)

    def _opening(
        self, messages: Sequence[dict[str, Any]], schemas: Sequence[dict[str, Any]], template: str | None
    ) -> str:
        """What stands before the answer of the last message, an assistant's. A template may not know an empty dialogue:
        where the assistant opens, it is what the template puts before another answer.

        Raises: DataError when the template refuses the dialogue, or does not open it in that way."""
        if len(messages) > 1:
            return self.render(messages[:-1], schemas, True, template)
        asked = [{"role": "user", "content": "Probe."}]
        opened, ended = self.render(asked, (), True, template), self.render(asked, (), False, template)
        opening = opened[len(os.path.commonprefix([opened, ended])) :]  # noqa: RUF071 - of texts, character by character
        closed = self.render(messages, schemas, False, template)
        at = closed.find(opening)
        if not opening or at < 0:
            raise DataError(
                "the chat template cannot say a dialogue that opens with the assistant",
                f"the text begins {str(messages[0]['content'])[:60]!r}",
                "take that turn out, or set model.chat_template=FILE",
            )
        return closed[: at + len(opening)]

    def _contents(
        self, turns: Sequence[Message], tools: Sequence[str], wanted: Collection[int], template: str | None, text: str
    ) -> tuple[tuple[int, int, int], ...]:
        """Where the contents of turns stand: marks of private-use characters are rendered in their place."""
        marks = {index: f"\ue000{index}\ue001" for index in wanted if index < len(turns) and turns[index].content}
        changed = [turn._replace(content=marks.get(index, turn.content)) for index, turn in enumerate(turns)]
        messages, schemas, _ = self._messages(changed, tools)
        rest = self.render(messages, schemas, template=template)
        spans, built = [], ""
        for index, mark in marks.items():
            content = turns[index].content.strip() if self.native.trims else turns[index].content
            before, found, rest = rest.partition(mark)
            built += before
            spans.append((len(built), len(built) + len(content), index))
            built += content
            if not found or not text.startswith(built):
                raise DataError(
                    f"the text of turn {index + 1} cannot be told from the template's",
                    f"the text begins {turns[index].content[:60]!r}",
                    "leave role_weights to the assistant, or set model.chat_template=FILE",
                )
        return tuple(spans)

    def _check_text(self, turn: Message, index: int | None) -> None:
        """Raise DataError for a turn that cannot be written; index: of a dialogue's turn, None for a completion."""
        what = "the completion" if index is None else f"the text of turn {index + 1}"
        begins = f"the text begins {turn.content[:60]!r}"
        if any(self.eos in text for text in (turn.content, turn.reasoning, *turn.calls)):
            mend = "take the token out of the text: it is added by the template"
            raise DataError(f"{what} holds the end-of-turn token '{self.eos}'", begins, mend)
        unclosed = self.frame.inside(turn.content) if self.frame.parts else None
        if unclosed is not None and not unclosed.answer:
            raise DataError(f"{what} is a thought without an answer", begins, "close the thought, and answer behind it")
        if turn.reasoning and self.frame.shut:
            raise DataError(
                f"{what} has a thought, and the chat template opens turns behind a closed one",
                begins,
                "set model.chat_template=FILE with a template that lets the model think, or take the thoughts out",
            )

    # -- messages ----------------------------------------------------------------------------------------------------

    def _messages(
        self, turns: Sequence[Message], tools: Sequence[str]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
        """Messages that the template can say, tool schemas for it, and the turn that each message came from."""
        native = self.native.tools
        schemas = [_schema(tool) for tool in tools] if native else []
        messages: list[dict[str, Any]] = []
        places: list[int] = []
        if tools and not native:
            turns, shift = _with_tool_list(turns, tools)
        else:
            shift = 0
        for index, turn in enumerate(turns):
            message = self._message(turn)
            joins = messages and message["role"] == "user" == messages[-1]["role"] and not self.native.tools
            folds = messages and message["role"] == "user" and messages[-1]["role"] == "system"
            if (folds and not self.native.system) or (joins and turn.role == "tool"):
                # Results of one round of calls are one user message.
                message["content"] = f"{messages.pop()['content']}\n\n{message['content']}"
                places.pop()
            messages.append(message)
            places.append(index - shift)
        return messages, schemas, places

    def _message(self, turn: Message) -> dict[str, Any]:
        message = turn.as_dict()
        if not self.native.tools:
            message.pop("tool_calls", None)
            message["content"] = _with_calls(turn)
            if turn.role == "tool":
                message |= {"role": "user", "content": f"<tool_response>\n{turn.content}\n</tool_response>"}
        if turn.reasoning:
            del message["reasoning_content"]
            if self.native.reasoning:
                message[self.native.reasoning] = turn.reasoning
            elif not self.opens_thinking:
                frame = self.frame
                message["content"] = f"{frame.before}{turn.reasoning.strip()}{frame.between}{message['content']}"
        return message


def _where(messages: Sequence[dict[str, Any]]) -> str:
    roles = ", ".join(str(message["role"]) for message in messages)
    return f"a dialogue with the roles {roles}, beginning {str(messages[0]['content'])[:60]!r}" if messages else ""


def _reason(error: Exception) -> str:
    """What went wrong in a template, with the line where that is known."""
    line = getattr(error, "lineno", None)
    said = str(error) or type(error).__name__
    if isinstance(error, ArithmeticError | RecursionError):
        said = f"{type(error).__name__}: {error}"
    return f"line {line}: {said}" if line else said


def _with_calls(turn: Message) -> str:
    """The text of a turn with its calls as text."""
    calls = [f"<tool_call>\n{call}\n</tool_call>" for call in turn.calls]
    return "\n".join(part for part in (turn.content, *calls) if part)


def _squeeze(text: str) -> str:
    """Text without white space."""
    return "".join(text.split())


def _schema(tool: str) -> dict[str, Any]:
    """A tool in the form chat templates take: {"type": "function", "function": …}."""
    schema = json.loads(tool)
    return schema if isinstance(schema, dict) and "function" in schema else {"type": "function", "function": schema}


def _with_tool_list(turns: Sequence[Message], tools: Sequence[str]) -> tuple[list[Message], int]:
    """Turns whose system message lists the tools, and how many messages were put in front for it."""
    listed = "\n".join(tools)
    text = (
        f"You can call these tools, one JSON schema a line:\n<tools>\n{listed}\n</tools>\n"
        'To call one, write <tool_call> on a line, then {"name": …, "arguments": {…}} as JSON, then </tool_call>.'
    )
    if turns and turns[0].role == "system":
        return [turns[0]._replace(content=f"{turns[0].content}\n\n{text}"), *turns[1:]], 0
    return [Message("system", text), *turns], 1
