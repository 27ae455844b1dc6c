"""A table in the report's two forms, for core's own parts and for plugins' sections. Any text may stand in a cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape


def cell(text: object) -> str:
    """Text that is safe in a Markdown table cell or heading: one line, no markup of its own."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_|\[\]#~])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A pipe table for report.md, `head` over its `rows`; every cell is escaped and put on one line."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for report.html, `head` over its `rows`; every cell is escaped."""

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in cells) + "</tr>"

    return f"<table><thead>{line(head, 'th')}</thead><tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"
