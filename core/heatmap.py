"""A text whose tokens are coloured by a weight, for the terminal and for HTML. Torch-free.

Blue is above zero, red below; the colour is the stronger the nearer the weight is to the largest of them. Weight 0 is
left plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_BLUE, _RED = (66, 133, 244), (234, 67, 53)
_LEVELS = 8
"""Shades of each colour."""


def _levels(weights: Sequence[float]) -> list[int]:
    """Shade of each weight, -_LEVELS .. _LEVELS; anything but 0 has at least the faintest."""
    top = max((abs(weight) for weight in weights), default=0.0)
    if top == 0:
        return [0] * len(weights)
    return [
        0 if weight == 0 else max(1, round(_LEVELS * abs(weight) / top)) * (1 if weight > 0 else -1)
        for weight in weights
    ]


def terminal(tokens: Sequence[str], weights: Sequence[float]) -> Text:
    """Tokens one behind the other as rich text, each on its colour; line ends are shown as ⏎.

    Raises ValueError when there are not as many weights as tokens.
    """
    from rich.text import Text

    text = Text()
    for token, level in zip(tokens, _levels(weights), strict=True):
        colour = _BLUE if level > 0 else _RED
        share = abs(level) / _LEVELS
        # Shades between black and the full colour, on which white letters can be read.
        shade = ",".join(str(round(part * (0.25 + 0.65 * share))) for part in colour)
        text.append(token.replace("\n", "⏎"), style=f"white on rgb({shade})" if level else "")
    return text


def html(tokens: Sequence[str], weights: Sequence[float]) -> str:
    """The same as one self-contained HTML element; texts are escaped, weights stand in the tooltips.

    Raises ValueError when there are not as many weights as tokens.
    """
    spans = []
    for token, weight, level in zip(tokens, weights, _levels(weights), strict=True):
        shown = escape(token.replace("\n", "⏎\n"))
        if not level:
            spans.append(shown)
            continue
        red, green, blue = _BLUE if level > 0 else _RED
        style = f"background:rgba({red},{green},{blue},{0.1 + 0.6 * abs(level) / _LEVELS:.2f})"
        spans.append(f'<span style="{style}" title="{weight:+.3g}">{shown}</span>')
    return f'<div style="white-space:pre-wrap;line-height:1.7">{"".join(spans)}</div>'
