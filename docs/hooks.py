"""For `mkdocs build`: the pages at the top of the repository become pages too, and links fit where they stand there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top."""
    for name in TOP:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they must be when `docs/` and the top stand in one folder; a link to code becomes its text."""
    place = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, fragment = target.partition("#")
        source = place if place in TOP else f"docs/{place}"
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        inside = found.removeprefix("docs/") if found.startswith("docs/") else found if found in TOP else ""
        if not inside.endswith(".md"):
            return text
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(place) or '.')}{mark}{fragment})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)
