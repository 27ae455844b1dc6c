"""Tokens shaded by their weight: for a terminal with colours, as plain text with marks, and as a fragment of HTML.

A weight above 0 is green, below 0 orange, the stronger the deeper; tokens of weight 0 are plain. Weights are taken
relative to `scale`, the largest absolute weight when unset. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

_RAISED = ((226, 245, 234), (61, 190, 122))
_LOWERED = ((252, 236, 220), (240, 140, 60))
"""Palest and deepest background, RGB, of weights above and below 0."""

CSS = """.heat{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.75 ui-monospace,Menlo,Consolas,monospace}
.heat i{font-style:normal;border-radius:3px;box-shadow:inset 0 0 0 .5px rgba(128,128,128,.28)}
.heat i.up{background:rgba(30,170,95,calc(.14 + .5*var(--w)))}
.heat i.down{background:rgba(230,120,30,calc(.14 + .5*var(--w)))}
.heat i:hover{outline:1.5px solid currentColor}
"""
"""Style of the fragments that `to_html` makes."""


@dataclass(frozen=True)
class TokenRow:
    """A row as a model sees it: token ids, the text of each, and its weight in the loss."""

    ids: Sequence[int]
    texts: Sequence[str]
    weights: Sequence[float]
    label: str = ""

    @property
    def trained(self) -> int:
        """Tokens with a weight."""
        return sum(weight != 0 for weight in self.weights)

    def around(self, context: int) -> TokenRow:
        """The tokens with a weight, all between them, and `context` tokens on either side; an ellipsis for the rest."""
        weighted = [place for place, weight in enumerate(self.weights) if weight] or [len(self.ids)]
        first, last = max(weighted[0] - context, 0), min(weighted[-1] + 1 + context, len(self.ids))
        texts = list(self.texts[first:last])
        if first and texts:
            texts[0] = "…" + texts[0]
        if last < len(self.ids):
            texts[-1] += "…"
        return TokenRow(self.ids[first:last], texts, self.weights[first:last], self.label)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several tokens make stands at the last of them. Their concatenation is
    the decoded row."""
    texts: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(waiting) < 8:
            texts.append("")
            continue
        piece = tokenizer.convert_ids_to_tokens(waiting[0])
        if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" "):
            text = " " + text  # SentencePiece drops the space before a token that is decoded alone
        texts.append(text)
        waiting = []
    return texts


def coloured(texts: Sequence[str], weights: Sequence[float], scale: float = 0.0) -> Text:
    """For a terminal with colours: weighted tokens on a shade, the others dim."""
    from rich.text import Text

    shown = Text()
    for text, strength in zip(texts, strengths(weights, scale), strict=True):
        pale, deep = _RAISED if strength > 0 else _LOWERED
        red, green, blue = (round(a + (b - a) * abs(strength)) for a, b in zip(pale, deep, strict=True))
        shown.append(_visible(text), f"black on rgb({red},{green},{blue})" if strength else "dim")
    return shown


def marked(texts: Sequence[str], weights: Sequence[float]) -> str:
    """Without colours: runs of one weight in [[…]], a weight other than 1 before the text, as in [[0.5|…]]."""
    return "".join(_mark(text, weight) for text, weight in runs(texts, weights))


def runs(texts: Sequence[str], weights: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Neighbours of one weight as one text."""
    for weight, part in groupby(zip(texts, weights, strict=True), key=lambda pair: pair[1]):
        yield "".join(text for text, _ in part), weight


def _mark(text: str, weight: float) -> str:
    text = _visible(text)
    if weight == 0:
        return text
    return f"[[{text}]]" if weight == 1 else f"[[{weight:g}|{text}]]"


def to_html(
    texts: Sequence[str], weights: Sequence[float], ids: Sequence[int] | None = None, scale: float = 0.0
) -> str:
    """A fragment that needs CSS around it: a shade for each token, its id and weight on hover. Texts are escaped."""
    parts = []
    numbers: Sequence[int | None] = ids if ids is not None else [None] * len(texts)
    for text, weight, strength, number in zip(texts, weights, strengths(weights, scale), numbers, strict=True):
        kind = "up" if strength > 0 else "down" if strength < 0 else ""
        shade = f' class="{kind}" style="--w:{abs(strength):.2f}"' if kind else ""
        title = f"weight {weight:g}" if number is None else f"id {number}, weight {weight:g}"
        shown = escape(text).replace("\n", "⏎\n") or "·"
        parts.append(f'<i{shade} title="{title}">{shown}</i>')
    return f'<div class="heat">{"".join(parts)}</div>'


def strengths(weights: Sequence[float], scale: float = 0.0) -> list[float]:
    """Weights as shares of `scale` (of the largest absolute weight, when 0), -1..1."""
    top = scale or max((abs(weight) for weight in weights), default=0.0) or 1.0
    return [max(-1.0, min(1.0, weight / top)) for weight in weights]


def _visible(text: str) -> str:
    return text.replace("\n", "⏎")
