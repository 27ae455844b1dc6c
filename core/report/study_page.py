"""study.md and study.html out of the numbers of study.json: a table, a plot, the claims, the runs. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from core.files import write_text
from core.report.charts import nice_ticks, tick_labels, y_range
from core.report.format import DASH, decimal, seconds
from core.tables import cell, markdown_table

FOLDER = Path(__file__).parent
WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 460, 110, 14, 26, 8, 22


def write_pages(folder: Path, study: dict[str, Any]) -> None:
    """Write study.md and study.html beside study.json, whole or not at all."""
    write_text(folder / "study.md", markdown(study))
    write_text(folder / "study.html", html(study, folder))


def result_rows(study: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: a row for each metric and arm that has it."""
    head = ["metric", "arm", "seeds", "start", "mean", "95 % interval", f"difference to {study['baseline']}",
            "95 % interval of it"]  # fmt: skip
    rows = []
    for metric in study["metrics"]:
        for row in (row for row in metric["arms"] if row["n"]):
            versus = row["difference"] or {}
            rows.append([
                metric["label"], row["arm"], str(row["n"]), decimal(metric["start"]), decimal(row["mean"]),
                _interval(row), decimal(versus.get("mean")), _interval(versus),
            ])  # fmt: skip
    return head, rows


def claim_rows(study: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the claims."""
    labels = {metric["metric"]: metric["label"] for metric in study["metrics"]}
    rows = []
    for claim in study["claims"]:
        margin = f" by more than {decimal(claim['margin'])}" if claim["margin"] else ""
        words = {"higher": "higher", "lower": "lower", "no_lower": "not lower", "no_higher": "not higher"}
        other = claim["than"] if claim["than_metric"] == claim["metric"] else labels[claim["than_metric"]]
        text = f"{claim['arm']}: {labels[claim['metric']]} {words[claim['relation']]}{margin} than {other}"
        rows.append([text, str(claim["n"]), decimal(claim["mean"]), _interval(claim), claim["verdict"]])
    return ["claim", "seeds", "difference", "95 % interval", "verdict"], rows


def run_rows(study: dict[str, Any]) -> list[list[str]]:
    """Arm, seed, state, time and folder of each run."""
    return [
        [run["arm"], str(run["seed"]), run["state"], seconds(run["seconds"]), run["run_dir"] or DASH]
        for run in study["runs"]
    ]


def about(study: dict[str, Any]) -> str:
    """Where and when, in a line."""
    return f"{study['date']}, {study['machine']}, {seconds(study['seconds'])} of runs."


NOTE = (
    "Intervals are Student's t over seeds; differences are paired by seed. A claim is seen where the whole interval of "
    "its difference lies on the claimed side, contradicted where it lies on the other, else open."
)


def markdown(study: dict[str, Any]) -> str:
    """The study as Markdown."""
    parts = [f"# {cell(study['title'] or study['name'])}", cell(study["paper"]), about(study), "## Result"]
    parts += [markdown_table(*result_rows(study)), NOTE, "## Claims", markdown_table(*claim_rows(study)), "## Runs"]
    parts.append(markdown_table(["arm", "seed", "state", "time", "folder"], run_rows(study)))
    words = "\n".join(f"- {cell(arm)}: `{' '.join(words)}`" for arm, words in study["arms"].items())
    return "\n\n".join(part for part in [*parts, "## Arms", words] if part) + "\n"


def html(study: dict[str, Any], folder: Path) -> str:
    """The study as one page that asks nothing of a network."""
    runs = [(row, _link(row[-1], folder)) for row in run_rows(study)]
    return _template().render(
        study=study, about=about(study), note=NOTE, results=result_rows(study), claims=claim_rows(study), runs=runs,
        panels=[(metric["label"], Markup(svg)) for metric in study["metrics"] if (svg := panel(metric))],
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
    )  # fmt: skip


def panel(metric: dict[str, Any]) -> str:
    """One metric as SVG: a line for each arm that has it, a dot for each seed, the mean with its interval; the start
    dashed. Empty where no run has it."""
    rows: Sequence[dict[str, Any]] = [row for row in metric["arms"] if row["n"]]
    if not rows:
        return ""
    known = [x for row in rows for x in (*row["values"].values(), row["low"], row["high"]) if x is not None]
    if metric["start"] is not None:
        known.append(metric["start"])
    x0, x1 = y_range(known)
    height = TOP + ROW * len(rows) + BOTTOM

    def place(value: float) -> float:
        return LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    parts = []
    ticks = nice_ticks(x0, x1, 4)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(f'<path class="gl" d="M{place(tick):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{place(tick):.1f}" y="{height - 7}" text-anchor="middle">{label}</text>')
    if metric["start"] is not None:
        x = place(metric["start"])
        parts.append(f'<path class="start" d="M{x:.1f} {TOP}V{height - BOTTOM}"/>')
    for index, row in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(f'<text class="arm" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(row["arm"])}</text>')
        if row["low"] is not None:
            parts.append(f'<path class="span" d="M{place(row["low"]):.1f} {y:.1f}H{place(row["high"]):.1f}"/>')
        for value in row["values"].values():
            parts.append(f'<circle class="seed" cx="{place(value):.1f}" cy="{y:.1f}" r="3"/>')
        if row["mean"] is not None:
            parts.append(f'<path class="mean" d="M{place(row["mean"]):.1f} {y - 7:.1f}v14"/>')
    label = escape(f"{metric['label']} of {', '.join(row['arm'] for row in rows)}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _interval(row: dict[str, Any]) -> str:
    if row.get("low") is None:
        return DASH
    return f"{decimal(row['low'])} … {decimal(row['high'])}"


def _link(run_dir: str, folder: Path) -> str | None:
    page = Path(run_dir) / "report.html"
    if not page.is_file():
        return None
    return quote(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.study.html.j2")
