"""The report as Markdown: the same facts, in tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.report.facts import Facts
from core.report.format import DASH, Pairs
from core.tables import cell, markdown_table
from core.types import Section

SHOWN_SAMPLES = 6


def to_markdown(facts: Facts, sections: Sequence[Section]) -> str:
    """GitHub-flavoured Markdown. Texts of the run stand in escaped cells, or in code fences longer than theirs."""
    parts = [f"# {cell(facts.title)}", *_headline(facts)]
    if facts.cards:
        rows = [(card["label"], card["value"], card["note"]) for card in facts.cards]
        parts += ["## Summary", markdown_table(("", "", ""), rows)]
    if facts.pipeline:
        head = ("stage", "state", "metric", "before", "after", "change", "time", "tokens")
        rows_ = [
            (
                f"{step['stage']} {step['algorithm']}".strip(),
                step["state"],
                step["metric"],
                step["before"] or DASH,
                step["after"] or DASH,
                step["delta"] or DASH,
                step["seconds"] or DASH,
                step["tokens"] or DASH,
            )
            for step in facts.pipeline
        ]
        parts += ["## Pipeline", markdown_table(head, rows_)]
    if facts.time_parts:
        parts += ["## Time", markdown_table(("part", "time", "share"), [
            (part["name"], part["seconds"], f"{100 * part['share']:.0f}%") for part in facts.time_parts])]  # fmt: skip
    if facts.charts:
        rows = [(", ".join(chart.names), chart.last, chart.note) for chart in facts.charts]
        parts += ["## Metrics", markdown_table(("metric", "last (smoothed)", "note"), rows)]
    parts += _samples(facts)
    if facts.trained["pairs"]:
        parts += ["## Model", markdown_table(("", ""), facts.trained["pairs"])]
    for item in facts.tables:
        parts += [f"## {item['title']}", markdown_table(("", ""), item["pairs"])]
    parts += _lineage(facts)
    if facts.checks["rows"]:
        rows = [({True: "ok", False: "FAILED"}.get(row["ok"], DASH), row["name"], row["detail"])
                for row in facts.checks["rows"]]  # fmt: skip
        parts += ["## Verification", markdown_table(("", "check", "detail"), rows)]
    if facts.warnings or facts.problems:
        parts += ["## Warnings", "\n".join(f"- {cell(text)}" for text in [*facts.warnings, *facts.problems])]
    for section in sections:
        parts += [f"## {cell(section.title)}", section.markdown.strip()]
    if facts.config:
        parts += ["## Config", fence(facts.config, "yaml")]
    return "\n\n".join(parts) + "\n"


def fence(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _headline(facts: Facts) -> list[str]:
    hero, lines = facts.hero, []
    unit = f" {hero['delta_unit']}" if hero["delta_unit"] else ""
    if hero["after"] is not None:
        text = f"**{cell(hero['metric'])}: {hero['before'] or DASH} → {hero['after']}**"
        if hero["interval"]:
            text += f" (95% interval {hero['interval'][0]} to {hero['interval'][1]})"
        if hero["delta"]:
            text += f", change {hero['delta']}{unit}"
        if hero["delta_interval"]:
            text += f" (95% interval {hero['delta_interval'][0]} to {hero['delta_interval'][1]})"
        lines.append(text)
    elif hero["before"] is not None:
        lines.append(f"**{cell(hero['metric'])}: {hero['before']} before training**")
    if hero["start"]:
        lines.append(f"Start of the pipeline: {hero['start']}; change since then: {hero['total_gain'] or DASH}{unit}.")
    if facts.state == "unfinished":
        total = f" of {hero['total_steps']}" if hero["total_steps"] else ""
        lines.append(f"Not finished: step {hero['step']}{total}.")
    lines.append(f"Run `{facts.run_name.replace('`', '')}`, {facts.state}.")
    return lines


def _samples(facts: Facts) -> list[str]:
    pairs = facts.samples["pairs"]
    if not pairs:
        return []
    parts = ["## Samples"]
    if facts.samples["compared"]:
        tally = facts.samples["tally"]
        parts.append(f"{tally['better']} better, {tally['equal']} equal, {tally['worse']} worse.")
    for pair in pairs[:SHOWN_SAMPLES]:
        parts += [f"### Prompt {cell(pair['index'])}", fence(pair["prompt"])]
        if pair["answer"] is not None:
            parts.append(f"Answer: {cell(pair['answer'])}")
        for when in ("before", "after"):
            if pair[when] is not None:
                scores = ", ".join(f"{name} {value}" for name, value in pair[when]["scores"])
                parts += [f"**{when.capitalize()}**{f' ({scores})' if scores else ''}", fence(pair[when]["completion"])]
    if len(pairs) + facts.samples["hidden"] > SHOWN_SAMPLES:
        parts.append("The other samples are in samples.jsonl.")
    return parts


def _lineage(facts: Facts) -> list[str]:
    lineage, rows = facts.lineage, []
    rows += lineage["pairs"]
    rows += [(f"parent {parent['stage']}", parent["key"]) for parent in lineage["parents"]]
    rows += [(f"sha256 {name}", digest) for name, digest in lineage["files"]]
    rows += lineage["versions"]
    pairs: Pairs = rows
    return ["## Lineage", markdown_table(("", ""), pairs)] if pairs else []
