"""Which target an item gets: its own answer, its own rewriting of the gold answer, or the gold answer. Torch-free.

Selective self-to-supervised fine-tuning (Gupta et al. 2025, arXiv:2502.08130): the branches are tried in turn, and the
first that gives an answer which a judge finds equal to the gold one wins. SSR tries the model's own answer alone, SDFT
the rewriting alone. An answer that was not judged right is never a target, and a judge's error is not a "right".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from core.api import Record, Score

SELF, PARAPHRASE, GOLD = "self", "paraphrase", "gold"
WRONG, ERROR = "judged wrong", "judge error"


@dataclass(frozen=True)
class PromptItem:
    """A prompt and its gold answer: token ids as they are trained on, the end-of-turn token included.

    gold_text: the answer alone; gold_thought: what stands before it.
    """

    record: Record
    prompt: list[int]
    gold_text: str
    gold: list[int]
    gold_thought: str = ""


@dataclass(frozen=True)
class Answer:
    """What the model wrote: token ids as they were drawn, what they say, and whether the end-of-turn token ended it.

    text: the answer alone; thought: what it thinks before; answer_at: place of the answer's first token.
    """

    ids: list[int]
    text: str
    finished: bool
    thought: str = ""
    answer_at: int = 0


@dataclass
class Target:
    """What an item is trained on. `rejected` says for each branch that was tried in vain why its first answer was not
    taken; `errors` holds what the judge failed with."""

    branch: str
    ids: list[int]
    text: str
    thought: str = ""
    rejected: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


Candidate = tuple[PromptItem, Answer]


def route(
    items: Sequence[PromptItem],
    branches: Sequence[str],
    sample: Callable[[str, Sequence[PromptItem]], Sequence[Sequence[Answer]]],
    fault: Callable[[str, PromptItem, Answer], str],
    judge: Callable[[Sequence[Candidate]], Sequence[Score]],
    threshold: float,
    likeliest: Callable[[Sequence[tuple[PromptItem, Sequence[Answer]]]], Sequence[int]],
) -> list[Target]:
    """One target for each item.

    branches: SELF, PARAPHRASE or both, in the order of preference.
    sample: the answers of a branch, a list for each item; an empty one where there is no room to answer.
    fault: why an answer must not be trained on whatever a judge says; empty where nothing speaks against it.
    judge: a score for each candidate; right from `threshold` on.
    likeliest: which of several right answers is taken, an index for each item.
    """
    targets: list[Target | None] = [None] * len(items)
    rejected: list[dict[str, str]] = [{} for _ in items]
    errors: list[list[str]] = [[] for _ in items]
    for branch in branches:
        waiting = [place for place, target in enumerate(targets) if target is None]
        candidates: list[tuple[int, Answer]] = []
        for place, answers in zip(waiting, sample(branch, [items[place] for place in waiting]), strict=True):
            reasons = [fault(branch, items[place], answer) for answer in answers] or ["no room to answer"]
            candidates += [(place, answer) for answer, reason in zip(answers, reasons, strict=False) if not reason]
            if reasons[0]:
                rejected[place][branch] = reasons[0]
        scores = judge([(items[place], answer) for place, answer in candidates])
        right: dict[int, list[Answer]] = {}
        for (place, answer), score in zip(candidates, scores, strict=True):
            if score.value is None:
                errors[place].append(score.error or "")
                rejected[place].setdefault(branch, ERROR)
            elif score.value >= threshold:
                right.setdefault(place, []).append(answer)
            else:
                rejected[place].setdefault(branch, WRONG)
        picked = likeliest([(items[place], answers) for place, answers in right.items()])
        for (place, answers), index in zip(right.items(), picked, strict=True):
            rejected[place].pop(branch, None)
            best = answers[index]
            targets[place] = Target(branch, best.ids, best.text, best.thought, rejected[place], errors[place])
    return [
        target or Target(GOLD, item.gold, item.gold_text, item.gold_thought, rejected[place], errors[place])
        for place, (target, item) in enumerate(zip(targets, items, strict=True))
    ]


class Filters:
    """Why an answer must not be trained on, before any judge is asked.

    special: ids that only templates write; the last token of an answer, its end of turn, may be one.
    max_length: tokens of prompt and target together.
    """

    def __init__(
        self, remnants: Sequence[str], leaks: Sequence[str], special: Collection[int], max_length: int
    ) -> None:
        flags = re.IGNORECASE | re.MULTILINE
        self.remnants = [re.compile(pattern, flags) for pattern in remnants]
        self.leaks = [re.compile(pattern, flags) for pattern in leaks]
        self.special = frozenset(special)
        self.max_length = max_length

    def __call__(self, branch: str, item: PromptItem, answer: Answer) -> str:  # noqa: PLR0911 - one return for each fault
        """The reason, or an empty text."""
        if not answer.finished:
            return "cut off"
        if not answer.text.strip():
            return "empty"
        if len(item.prompt) + len(answer.ids) > self.max_length:
            return "too long"
        own = answer.ids[answer.answer_at : -1]
        if not self.special.isdisjoint(own) or any(pattern.search(answer.text) for pattern in self.remnants):
            return "template remnant"
        if branch == PARAPHRASE:
            if any(pattern.search(answer.text) for pattern in self.leaks):
                return "speaks of the reference"
            if answer.text.split() == item.gold_text.split():
                return "copy of the gold answer"
        return ""
