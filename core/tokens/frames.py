"""How a template writes an assistant turn, and how it is read again: thought, answer, and the frame around them.

The same marks serve both ways: a thought that a row writes out is parted from the answer before the template sees it,
and a completion is parted into both before anything scores it. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MARKS = (
    ("<think>", "</think>"),
    ("<|channel>thought", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""What families of models write before and behind a thought. The first pair is what files and most models use."""
THINK_OPENED, THINK_CLOSED = "<think>\n", "\n</think>\n\n"
"""The same with the white space that most templates write."""


class Said(NamedTuple):
    """What the assistant says in a turn."""

    thought: str
    """What it thinks before it answers, without marks; empty where it does not."""
    answer: str
    """What it says; empty where the thought was cut off."""
    answer_at: int = 0
    """Of token ids: the place of the answer's first token. Thought and frame stand before it."""


@dataclass(frozen=True)
class Frame:
    """The text of a final turn between its opening and the end-of-turn token.

    lead, trail: stand before and behind an answer without a thought, an empty <think> block say.
    before, between: stand before a thought, and between it and the answer.
    opened: the opening of the turn ends inside a thought.
    shut: the opening of the turn ends behind a thought, so the turn can have none.
    parts: a thought inside a text is taken out and written as `before` and `between` say; else the text stays as it is.
    marks: (opening, closing) that tell a thought in a text, the template's own first.
    """

    lead: str = ""
    trail: str = ""
    before: str = THINK_OPENED
    between: str = THINK_CLOSED
    opened: bool = False
    shut: bool = False
    parts: bool = False
    marks: tuple[tuple[str, str], ...] = MARKS[:1]

    @classmethod
    def of(
        cls, template: str, lead: str, trail: str, said: tuple[str, str] | None, opened: bool, shut: bool, keeps: bool
    ) -> Frame:
        """The frame out of what a template was seen to do.

        said: what it writes before and behind a thought; None where it has no place for one.
        opened, shut: as the fields. keeps: it leaves a thought that is written inside of a text as it is.
        """
        known = [pair for pair in MARKS if all(mark in template for mark in pair)]
        own = next((pair for pair in known if pair != MARKS[0]), None)
        marks = dict.fromkeys([*known, MARKS[0]])
        if said is not None:
            before, between = said
            closing = _common_end(lead, between) or between.strip()
            if closing:
                marks = dict.fromkeys([(before.strip() or _opening_of(closing), closing), *marks])
        elif own is not None:
            before, between = f"{own[0]}\n", f"\n{own[1]}"
        elif opened:
            before, between = "", THINK_CLOSED
        else:
            before, between = THINK_OPENED, THINK_CLOSED
        if opened and not lead:
            lead = between
        parts = said is not None or own is not None or opened or shut or not keeps
        return cls(lead, trail, before, between, opened, shut, parts, tuple(marks))

    def write(self, thought: str, answer: str) -> str:
        """The turn's text."""
        if not thought:
            return f"{self.lead}{answer}{self.trail}"
        return f"{self.before}{thought.strip()}{self.between}{answer}{self.trail}"

    def read(self, text: str) -> Said | None:
        """What a generated turn says, from its text with special tokens, without the end of turn; None for one without
        thought and frame."""
        said = self.inside(text)
        if said is None and self.opened:
            return Said(text.strip(), "")
        if said is None:
            bare = self._bare(text.removeprefix(self.lead) if self.lead.strip() else text)
            return None if bare == text else Said("", bare)
        return said._replace(answer=self._bare(said.answer))

    def inside(self, text: str) -> Said | None:
        """The thought inside a text, and the answer behind it; the answer is empty where the thought is not closed.
        None for a text without one."""
        for opening, closing in self.marks:
            before, closed, answer = text.partition(closing)
            start = before.lstrip()
            begins = bool(opening) and start.startswith(opening)
            if closed and (begins or not opening or opening not in before):
                rest = self.between.strip().removesuffix(closing).strip()
                thought = start.removeprefix(opening).rstrip()
                return Said(thought.removesuffix(rest).strip(), answer.lstrip())
            if begins and not closed:
                return Said(start.removeprefix(opening).strip(), "")
        return None

    def closing_in(self, text: str) -> bool:
        """Whether the text holds the end of a thought, or of the frame before an answer."""
        return any(closing in text for _, closing in self.marks)

    def _bare(self, answer: str) -> str:
        trail = self.trail.strip()
        return answer.rstrip().removesuffix(trail) if trail and answer.rstrip().endswith(trail) else answer


def _common_end(one: str, two: str) -> str:
    """The longest text that both end with, white space around it left out."""
    one, two = one.rstrip(), two.rstrip()
    length = 0
    while length < min(len(one), len(two)) and one[-length - 1] == two[-length - 1]:
        length += 1
    return one[len(one) - length :].strip()


def _opening_of(closing: str) -> str:
    """The opening mark that belongs to a closing one; empty where it is not known."""
    return next((opening for opening, end in MARKS if end == closing), "")
