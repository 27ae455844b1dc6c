"""What a chat template does, found by rendering small dialogues with it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import DataError
from core.tokens.frames import MARKS, THINK_CLOSED, THINK_OPENED, Frame

THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
"""Keys of a message under which templates look for what the assistant thinks, the usual one first."""

_ASKED = {"role": "user", "content": "Probe."}
_ANSWER = {"role": "assistant", "content": "Fine"}


class NotPrefix(ValueError):
    """The rendering of a shorter dialogue is not the beginning of the longer one's."""


@dataclass(frozen=True)
class NativeFeatures:
    """What a template says natively. The rest is said in plain text:

    system: else the system message is put before the first user message.
    tools: else tools are listed in the system message, calls stand as <tool_call> JSON in the assistant's text, and
        results are user messages in <tool_response>.
    reasoning: name of the message key that it takes a thought under; empty where it has none: the thought then stands
        before the text, as the frame writes it.
    trims: the template drops white space around contents.
    """

    system: bool = True
    tools: bool = True
    reasoning: str = THOUGHT_KEYS[0]
    trims: bool = False


class Probe:
    """Asks a template.

    render: text of messages, tools, whether the assistant's turn is opened, and another template, in this order; raises
        DataError where the template refuses them. eos: the end-of-turn token.
    """

    def __init__(self, render: Callable[..., str], eos: str) -> None:
        self.render, self.eos = render, eos

    def agrees(self, twin: str) -> bool:
        """Whether a twin opens and closes a single turn as the model's own template does, up to the end of turn."""
        try:
            if self.render([_ASKED], (), True) != self.render([_ASKED], (), True, twin):
                return False
            own, other = self.render([_ASKED, _ANSWER]), self.render([_ASKED, _ANSWER], (), False, twin)
        except DataError:
            return False
        return own.partition(self.eos)[0] == other.partition(self.eos)[0] or own == other

    def native_and_frame(self, template: str) -> tuple[NativeFeatures, Frame, bool]:
        """What the template says natively, its frame, and whether its opening ends inside a thought that it leaves out
        of finished turns.

        Raises: NotPrefix when a plain turn does not continue its opening; DataError when its text is not there.
        """
        native = self._native()
        opened, closed = self.render([_ASKED], (), True), self.render([_ASKED, _ANSWER])
        lead, trail, drops = self._around(opened, closed)
        if drops:  # the turn is put together by us, so its calls must be text
            native = replace(native, tools=False)
        said = self._around_thought(opened, native.reasoning) if native.reasoning else None
        written = f"{THINK_OPENED}probe_thought{THINK_CLOSED}Fine"
        frame = Frame.of(
            template,
            lead,
            trail,
            said,
            opened=drops or (said is not None and not said[0].strip() and bool(said[1].strip())),
            shut=any(opened.rstrip().endswith(closing) for _, closing in MARKS),
            keeps=self._says(written, messages=[_ASKED, {**_ANSWER, "content": written}]),
        )
        return native, frame, drops

    def _around(self, opened: str, closed: str) -> tuple[str, str, bool]:
        """What stands before and behind a plain answer, and whether the finished turn leaves out the thought that its
        opening opens."""
        if not closed.startswith(opened):
            if not any(opened.rstrip().endswith(opening) for opening, _ in MARKS):
                raise NotPrefix
            return "", "", True
        lead, found, tail = closed[len(opened) :].partition("Fine")
        if not found or self.eos in lead:
            raise DataError(
                "the chat template refuses a dialogue: it drops the text of a plain turn",
                "a question and an answer of one word",
                "set model.chat_template=FILE with a template that takes contents as text",
            )
        return lead, tail.partition(self.eos)[0] if self.eos in tail else "", False

    def _around_thought(self, opened: str, key: str) -> tuple[str, str] | None:
        """What stands before a thought, and between it and the answer; None where the turn does not continue its
        opening."""
        thinking = self.render([_ASKED, {**_ANSWER, key: "probe_thought"}])
        if not thinking.startswith(opened):
            return None
        before, _, behind = thinking[len(opened) :].partition("probe_thought")
        return before, behind.partition("Fine")[0]

    def _thinks(self, key: str) -> bool:
        """Whether the template writes the thought that stands under a key of a final turn, before the answer."""
        try:
            return "Fine" in self.render([_ASKED, {**_ANSWER, key: "probe_thought"}]).partition("probe_thought")[2]
        except DataError:
            return False

    def _says(
        self,
        *texts: str,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        opened: bool = False,
    ) -> bool:
        try:
            rendered = self.render(messages, tools, opened)
        except DataError:
            return False
        return all(text in rendered for text in texts)

    def _native(self) -> NativeFeatures:
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
        system = {"role": "system", "content": "probe_system"}
        return NativeFeatures(
            # In a prompt, which is what generation sees: a finished dialogue may say it elsewhere, or not at all.
            system=self._says("probe_system", messages=[system, _ASKED], opened=True),
            tools=self._says("probe_description", messages=[_ASKED, _ANSWER], tools=[tool])
            and self._says("probe_call", "probe_argument", "probe_result", messages=[_ASKED, called, result, _ANSWER]),
            reasoning=next((key for key in THOUGHT_KEYS if self._thinks(key)), ""),
            trims=not self._says(" probe_space \n", messages=[{"role": "user", "content": " probe_space \n"}, _ANSWER]),
        )
