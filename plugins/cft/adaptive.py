"""Text-adaptive directives: the policy, as it is before training, writes one for each passage.

A written directive that repeats the passage, names its answer, does not fit the room or is no sentence is not used; the
passage takes one from the library then. After the authors' generation step (Choi et al. 2025), with the policy itself
in the place of a stronger model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core.api import Message, Sampling
from core.torch_api import StageRun, write_text

FILE = "directives.jsonl"
_EXCERPT_CHARS = 600
_SHARED_WORDS = 5
"""So many words in a row, the same in directive and passage, count as repetition."""
_TEMPERATURE = 0.7
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_WORD = re.compile(r"\w+")

REQUEST = (
    "A text begins like this:\n\n{excerpt}\n\nWrite one short sentence that tells a reader in which way to read this "
    "text. The way is: {category}. State no fact from the text and answer no question."
)


@dataclass(frozen=True)
class Written:
    """A directive that was written for a passage. `state` is used, repeats, answers, empty or long."""

    index: int
    category: str
    text: str
    state: str


def repeats(directive: str, passage: str) -> bool:
    """Whether five words in a row are the same in both, case and punctuation apart."""
    said, read = ([word.lower() for word in _WORD.findall(text)] for text in (directive, passage))
    runs = {tuple(read[start : start + _SHARED_WORDS]) for start in range(len(read) - _SHARED_WORDS + 1)}
    return any(tuple(said[start : start + _SHARED_WORDS]) in runs for start in range(len(said) - _SHARED_WORDS + 1))


def judged(index: int, category: str, raw: str, passage: str, answer: str) -> Written:
    """The first sentence of what was written, and whether it may be used."""
    found = _SENTENCE.search(raw.strip())
    text = found.group().strip() if found else ""
    if not text:
        state = "empty"
    elif answer and re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", text.lower()):
        state = "answers"
    elif repeats(text, passage):
        state = "repeats"
    else:
        state = "used"
    return Written(index, category, text, state)


def written_directives(
    run: StageRun, passages: Sequence[str], answers: Sequence[str], categories: Sequence[str], room: int
) -> dict[int, str]:
    """Directive by index of its passage, for those that may be used. Written once for a run, into `directives.jsonl`.

    answers: the answer that belongs to each passage, or an empty text.
    room: most tokens of a directive.
    """
    file = run.folder / FILE
    if not file.is_file():
        kinds = [categories[run.seed_for("category", index) % len(categories)] for index in range(len(passages))]
        requests = [
            [Message("user", REQUEST.format(excerpt=passage[:_EXCERPT_CHARS], category=kind))]
            for passage, kind in zip(passages, kinds, strict=True)
        ]
        sampling = Sampling(
            max_new_tokens=room, temperature=_TEMPERATURE, seed=run.seed_for("directives"),
            stop_token_ids=run.codec.ends,
        )  # fmt: skip
        rollouts = run.parts.evaluation_engine().generate(run.codec.prompts(requests), sampling)
        rows = [
            judged(index, kinds[index], run.codec.said(rollout.completion_ids).answer, passages[index], answers[index])
            for index, rollout in enumerate(rollouts)
        ]
        _save(file, rows)
    rows = [Written(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    counts = Counter(row.state for row in rows)
    run.log.say("directives written: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return {row.index: row.text for row in rows if row.state == "used"}


def _save(file: Path, rows: Sequence[Written]) -> None:
    write_text(file, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
