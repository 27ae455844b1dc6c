"""The annotation as people see it: heat maps in the terminal and in the report. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from core.api import Section, heatmap

if TYPE_CHECKING:
    from core.torch_api import RunLog

LEGEND = "green (above 0) is made likelier, orange (below 0) less likely; plain tokens count for nothing"


@dataclass(frozen=True)
class AnnotatedAnswer:
    """An answer with its token weights. kind: right, wrong or marked; seeds: salient or negative tokens in it."""

    prompt: str
    kind: str
    tokens: list[str]
    weights: list[float]
    seeds: int

    @property
    def title(self) -> str:
        """What is to be seen in one line."""
        what = "salient" if self.kind == "right" else "negative"
        return f"{self.kind} answer, {self.seeds} of {len(self.tokens)} tokens {what}"


def print_heat_maps(log: RunLog, answers: Sequence[AnnotatedAnswer]) -> None:
    """A few annotated answers for the terminal."""
    if answers:
        log.say(f"token weights: {LEGEND}")
    for answer in answers:
        log.say(f"{answer.title}: {answer.prompt[-120:].strip()!r}")
        log.heat_map(answer.tokens, answer.weights)


def annotation_section(answers: Sequence[AnnotatedAnswer], counts: dict[str, int]) -> Section:
    """The report's part."""
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    html = [f"<style>{heatmap.CSS}</style><p>Answers: {escape(told)}. In the maps {LEGEND}.</p>"]
    markdown = [f"Answers: {told}.", ""]
    for answer in answers:
        html.append(f"<h3>{escape(answer.title)}</h3><pre>{escape(answer.prompt)}</pre>")
        html.append(heatmap.to_html(answer.tokens, answer.weights))
        strongest = sorted(zip(answer.tokens, answer.weights, strict=True), key=lambda one: -abs(one[1]))[:5]
        named = ", ".join(f"`{token.strip() or token!r}` {weight:+.2f}" for token, weight in strongest)
        markdown.append(f"- {answer.title}; strongest: {named}")
    return Section("Token weights", "".join(html), "\n".join(markdown), order=50)
