"""A preview as one HTML file that asks nothing of a network and runs no script. Torch-free."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from core.commands.preview.found import HEAD, Preview, histogram, lines_of, row_of
from core.tokens.heatmap import CSS, to_html

TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(found: Preview) -> str:
    """The page as text; every text of the data is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    charts = [
        (source.name, [(low, high, count, 100 * count / max(bar[2] for bar in bars)) for low, high, count in bars])
        for source in ([found.whole] if len(found.sources) > 1 else []) + found.sources
        if (bars := histogram(source.lengths))
    ]
    totals = [found.whole] if len(found.sources) > 1 else []
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        lines=lines_of(found),
        head=HEAD,
        table=[row_of(source) for source in [*found.sources, *totals]],
        charts=charts,
        heat=lambda row: Markup(to_html(row.texts, row.weights, row.ids)),
        style=Markup(CSS),
    )
