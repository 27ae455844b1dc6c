"""report.html and report.md of a run, made from the files of its folder alone. Torch-free, knows no algorithm."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from core.report.facts import Facts, collect, yaml_html
from core.report.markdown import to_markdown
from core.types import Section

__all__ = ["build_report", "render_html", "render_markdown"]

FOLDER = Path(__file__).parent


def build_report(run_dir: Path, sections: Iterable[Section] = ()) -> Path:
    """Write report.html and report.md into `run_dir` and return the path of report.html.

    Reads plan.json, result.json, artifact.json, metrics.jsonl, samples.jsonl, config.yaml and log.txt there; any of
    them may be missing or torn, and what is missing is left out. The page is one file that asks nothing of a network;
    every text of the run is escaped. `sections` are shown in order of `Section.order`; their HTML is taken as it is,
    so a plugin escapes its own texts (scripts in it do not run).
    Raises FileNotFoundError where `run_dir` is not a folder, OSError where it cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run folder at {run_dir}")
    facts, ordered = collect(run_dir), sorted(sections, key=lambda section: section.order)
    _write(run_dir / "report.md", render_markdown(facts, ordered))
    page = run_dir / "report.html"
    _write(page, render_html(facts, ordered))
    return page


def render_html(facts: Facts, sections: Iterable[Section] = ()) -> str:
    """The page as text."""
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    main = [chart for chart in facts.charts if chart.group not in ("other", "throughput", "lr")]
    return _template().render(
        facts=facts,
        charts=main or facts.charts,
        more_charts=[chart for chart in facts.charts if chart not in main] if main else [],
        sections=[{"title": section.title, "html": Markup(section.html)} for section in sections],
        config=Markup(yaml_html(facts.config)),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        svg=Markup,
    )


def render_markdown(facts: Facts, sections: Iterable[Section] = ()) -> str:
    """The same facts as Markdown."""
    return to_markdown(facts, list(sections))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8", errors="replace")
    draft.replace(path)
