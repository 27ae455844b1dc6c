"""How a dialogue becomes text, and which part of it each assistant turn is.

A layout is rendered by the model's own chat template. The part of an assistant turn is what comes between the
rendering of everything before it, its opening included, and the end-of-turn token. That holds only when the shorter
rendering is the beginning of the longer one, which is checked for each dialogue. Where it does not hold, the
template's training twin is tried, as TRL ships them: the same text, but turn by turn.

What a template cannot say is said in plain text, see `NativeFeatures`. Torch-free; Jinja runs in transformers' sandbox.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.data.records import Message
from core.errors import DataError

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

_THINK_OPENED = "<think>"
_THINK_CLOSED = "\n</think>\n\n"


class NotPrefix(ValueError):
    """The rendering of a shorter dialogue is not the beginning of the longer one's."""


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


@dataclass(frozen=True)
class NativeFeatures:
    """What a template says natively. The rest is said in plain text:

    system: else the system message is put before the first user message.
    tools: else tools are listed in the system message, calls stand as <tool_call> JSON in the assistant's text, and
        results are user messages in <tool_response>.
    reasoning: else reasoning stands in <think> before the text.
    trims: the template drops white space around contents.
    """

    system: bool = True
    tools: bool = True
    reasoning: bool = True
    trims: bool = False


class ChatLayout:
    """Lays dialogues out with one tokenizer's template.

    lead, trail: text that the template puts between the opening and the answer, and between the answer and the
        end-of-turn token, in a final turn (an empty <think> block, say).
    opens_thinking: the opening ends inside a <think> block that the template leaves out of finished turns.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eos: str = tokenizer.eos_token
        self.lead, self.trail = "", ""
        self.opens_thinking = False
        self.native = NativeFeatures()
        own = tokenizer.get_chat_template()
        twin = training_twin(own)
        self.twin = twin if twin and self._agrees(twin) else None
        self.native = self._probe_native()
        self._probe_frame()

    # -- rendering ---------------------------------------------------------------------------------------------------

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), opened: bool = False,
        template: str | None = None,
    ) -> str:  # fmt: skip
        """Text of messages in the form chat templates take. Raises DataError when the template refuses them."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, chat_template=template, add_generation_prompt=opened,
                tokenize=False,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise DataError(
                f"the chat template refuses a dialogue: {error}",
                f"a dialogue with the roles {roles}, beginning {str(messages[0]['content'])[:60]!r}" if roles else "",
                "correct the row, or set model.chat_template=FILE with a template that takes such turns",
            ) from error

    def prompt(self, turns: Sequence[Message], tools: Sequence[str] = ()) -> str:
        """Text of a dialogue that ends before the assistant's turn, its opening included."""
        messages, schemas, _ = self._messages(turns, tools)
        return self.render(messages, schemas, opened=True)

    # -- layouts -----------------------------------------------------------------------------------------------------

    def lay_out(
        self, turns: Sequence[Message], tools: Sequence[str], marked: Collection[int], contents: Collection[int] = ()
    ) -> DialogueText:
        """The dialogue up to the end of the last marked assistant turn.

        marked: indices of the assistant turns whose parts are wanted; contents: of other turns.
        Raises: NotPrefix when neither the template nor its twin renders turn by turn; DataError when the template
        refuses the dialogue or rewrites the text of a marked turn.
        """
        turns = turns[: max(marked) + 1]
        for index in marked:
            self._check_text(turns[index], index)
        try:
            return self._lay_out(turns, tools, marked, contents, None)
        except NotPrefix:
            if self.twin is None:
                raise
        return self._lay_out(turns, tools, marked, contents, self.twin)

    def _lay_out(
        self,
        turns: Sequence[Message],
        tools: Sequence[str],
        marked: Collection[int],
        contents: Collection[int],
        template: str | None,
    ) -> DialogueText:
        messages, schemas, places = self._messages(turns, tools)
        whole = "" if self.opens_thinking else self.render(messages, schemas, template=template)
        spans = []
        for position, turn in enumerate(places):
            if turn not in marked:
                continue
            opened = self._opening(messages[: position + 1], schemas, template)
            last = position == len(messages) - 1
            if self.opens_thinking:
                if not last:
                    raise NotPrefix
                said = turns[turn]
                whole = f"{opened}{said.reasoning.strip()}{_THINK_CLOSED}{messages[position]['content']}{self.eos}"
            closed = whole if last else self.render(messages[: position + 1], schemas, False, template)
            end = closed.find(self.eos, len(opened))
            if not closed.startswith(opened) or end < 0 or not whole.startswith(closed[: end + len(self.eos)]):
                raise NotPrefix
            content, segment = messages[position]["content"], closed[len(opened) : end]
            if content.strip() not in segment and _squeeze(content) not in _squeeze(segment):
                raise DataError(
                    f"the chat template rewrites the text of turn {turn + 1}",
                    f"the text begins {content[:60]!r}",
                    "correct the row, or set model.chat_template=FILE",
                )
            spans.append((len(opened), end, turn))
        text = whole[: spans[-1][1] + len(self.eos)]
        found = self._contents(turns, tools, contents, template, text) if contents else ()
        return DialogueText(text, tuple(spans), len(self.eos), found)

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

    def _check_text(self, turn: Message, index: int) -> None:
        if any(self.eos in text for text in (turn.content, turn.reasoning, *turn.calls)):
            raise DataError(
                f"the text of turn {index + 1} holds the end-of-turn token '{self.eos}'",
                f"the text begins {turn.content[:60]!r}",
                "take the token out of the text: it is added by the template",
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
            calls = [f"<tool_call>\n{call}\n</tool_call>" for call in turn.calls]
            message["content"] = "\n".join(part for part in (turn.content, *calls) if part)
            if turn.role == "tool":
                message |= {"role": "user", "content": f"<tool_response>\n{turn.content}\n</tool_response>"}
        if turn.reasoning and not self.native.reasoning and not self.opens_thinking:
            del message["reasoning_content"]
            message["content"] = f"<think>\n{turn.reasoning.strip()}\n</think>\n\n{message['content']}"
        return message

    # -- probing -----------------------------------------------------------------------------------------------------

    def _agrees(self, twin: str) -> bool:
        """Whether a twin opens and closes a single turn as the model's own template does, up to the end of turn."""
        asked, answer = {"role": "user", "content": "Probe."}, {"role": "assistant", "content": "Fine"}
        try:
            if self.render([asked], opened=True) != self.render([asked], opened=True, template=twin):
                return False
            own, other = self.render([asked, answer]), self.render([asked, answer], template=twin)
        except DataError:
            return False
        return own.partition(self.eos)[0] == other.partition(self.eos)[0] or own == other

    def _says(self, *texts: str, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> bool:
        try:
            rendered = self.render(messages, tools)
        except DataError:
            return False
        return all(text in rendered for text in texts)

    def _probe_native(self) -> NativeFeatures:
        user, fine = {"role": "user", "content": "Probe."}, {"role": "assistant", "content": "Fine"}
        call = {"type": "function", "function": {"name": "probe_call", "arguments": {"place": "probe_argument"}}}
        tool = {
            "type": "function",
            "function": {
                "name": "probe_call",
                "description": "probe_description",
                "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
            },
        }
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "content": "probe_result", "name": "probe_call"}
        return NativeFeatures(
            system=self._says("probe_system", messages=[{"role": "system", "content": "probe_system"}, user, fine]),
            tools=self._says("probe_description", messages=[user, fine], tools=[tool])
            and self._says("probe_call", "probe_argument", "probe_result", messages=[user, called, result, fine]),
            reasoning=self._says("probe_thought", messages=[user, {**fine, "reasoning_content": "probe_thought"}]),
            trims=not self._says(" probe_space \n", messages=[{"role": "user", "content": " probe_space \n"}, fine]),
        )

    def _probe_frame(self) -> None:
        """Find lead and trail from one turn. Raises NotPrefix when the turn does not continue its opening."""
        asked, answer = {"role": "user", "content": "Probe."}, {"role": "assistant", "content": "Fine"}
        opened, closed = self.render([asked], opened=True), self.render([asked, answer])
        segment = closed[len(opened) :]
        if not closed.startswith(opened):
            if not opened.rstrip().endswith(_THINK_OPENED):
                raise NotPrefix
            self.opens_thinking, self.lead = True, _THINK_CLOSED
            # The turn is put together here, so its calls must be text.
            self.native = replace(self.native, tools=False)
        elif self.eos in segment and "Fine" in segment.partition(self.eos)[0]:
            self.lead, _, tail = segment.partition("Fine")
            self.trail = tail.partition(self.eos)[0]


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
