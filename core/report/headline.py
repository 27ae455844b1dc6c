"""The head of the report: the headline, the pipeline, the summary and where the time went."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.planning.plan_record import PlanRecord, StageEntry
from core.report.charts import Series
from core.report.format import (
    DASH,
    change_of,
    count,
    decimal,
    interval_of,
    is_share,
    lower_is_better,
    number,
    seconds,
    short,
    value_of,
)
from core.results import ChainStep, StageResult


def hero_of(result: StageResult | None, plan: PlanRecord, series: list[Series], last_step: float) -> dict[str, Any]:
    """The headline: values before and after as texts, their places on one axis, the verdict. result: None for a run
    that is not finished."""
    known = result or _so_far(series)
    metric = known.metric or "score"
    start, before, after = number(known.start), number(known.before), number(known.after)
    interval, delta_interval = interval_of(known.interval), interval_of(known.delta_interval)
    delta = after - before if before is not None and after is not None else None
    total = plan.preview.total_steps
    return {
        "metric": metric,
        "final": result is not None and after is not None,
        "start": None if start is None else value_of(metric, start),
        "before": None if before is None else value_of(metric, before),
        "after": None if after is None else value_of(metric, after),
        "interval": None if interval is None else [value_of(metric, end) for end in interval],
        "delta": None if delta is None else change_of(metric, delta),
        "delta_unit": "points" if is_share(metric, before, after) else "",
        "delta_interval": None if delta_interval is None else [change_of(metric, end) for end in delta_interval],
        "verdict": _verdict(metric, delta, delta_interval, before, interval),
        "total_gain": None if start is None or after is None else change_of(metric, after - start),
        "lower": lower_is_better(metric),
        "item_count": None if result is None else count(result.items),
        "scale": _scale(metric, start, before, after, interval),
        "step": count(last_step),
        "total_steps": count(total) if total else None,
        "progress": min(1.0, last_step / total) if total else None,
    }


def _so_far(series: list[Series]) -> StageResult:
    """First and last value of the first evaluation metric, for a run without result.json."""
    evaluations = [item for item in series if item.name.startswith("eval/")]
    if not evaluations:
        return StageResult("")
    chosen = next((item for item in evaluations if item.name == "eval/score"), evaluations[0])
    known = chosen.known
    metric = f"held-out {chosen.name.split('/', 1)[-1]}"
    return StageResult("", metric=metric, before=known[0], after=known[-1] if len(known) > 1 else None)


def _verdict(
    metric: str,
    delta: float | None,
    delta_interval: tuple[float, float] | None,
    before: float | None,
    interval: tuple[float, float] | None,
) -> str:
    """Whether the change is better, worse, or open (the interval holds no change)."""
    if not delta:
        return "open"
    if delta_interval is not None and delta_interval[0] <= 0 <= delta_interval[1]:
        return "open"
    if delta_interval is None and interval is not None and before is not None and interval[0] <= before <= interval[1]:
        return "open"
    return "better" if (delta > 0) != lower_is_better(metric) else "worse"


def _scale(
    metric: str, start: float | None, before: float | None, after: float | None, interval: tuple[float, float] | None
) -> dict[str, Any] | None:
    """Places (0..1) of the headline's points on one axis."""
    points = [x for x in (start, before, after, *(interval or ())) if x is not None]
    if len(points) < 2:
        return None
    low, high = (0.0, 1.0) if is_share(metric, *points) and min(points) >= 0 else (min(points), max(points))
    if high <= low:
        return None
    air = 0.0 if (low, high) == (0.0, 1.0) else 0.08 * (high - low)
    low, high = low - air, high + air

    def place(x: float | None) -> float | None:
        return None if x is None else round((x - low) / (high - low), 4)

    return {
        "low": value_of(metric, low),
        "high": value_of(metric, high),
        "start": place(start),
        "before": place(before),
        "after": place(after),
        "interval": None if interval is None else [place(end) for end in interval],
    }


def pipeline_of(result: StageResult | None, plan: PlanRecord, run_dir: Path) -> list[dict[str, Any]]:
    """The stages in order with their own before and after; the plan's stages where nothing is finished."""
    planned = {entry.stage: entry for entry in plan.stages}
    done = list(result.pipeline) if result else []
    here = (result.stage if result else "") or plan.stage
    if result and done and here and here not in {step.stage for step in done}:
        done.append(replace(result.as_step(), stage=here))
    done = [step if step.metric else replace(step, metric=result.metric if result else "") for step in done]
    return [
        _stage_row(step, planned.get(step.stage, StageEntry()), step.stage == here, run_dir)
        for step in done or [ChainStep(entry.stage) for entry in planned.values()]
    ]


def _stage_row(step: ChainStep, entry: StageEntry, here: bool, run_dir: Path) -> dict[str, Any]:
    """A stage as texts, and its places on the axis where its metric is a share."""
    metric, before, after = step.metric or "score", number(step.before), number(step.after)
    state = {"reuse": "reused", "resume": "resumed"}.get(entry.state, "run")
    if step.reused is not None:
        state = "reused" if step.reused else "run" if state == "reused" else state
    delta = after - before if before is not None and after is not None else None
    share = is_share(metric, before, after)
    return {
        "stage": step.stage or "?",
        "algorithm": entry.algorithm,
        "state": state,
        "metric": metric if after is not None or before is not None else "",
        "before": None if before is None else value_of(metric, before),
        "after": None if after is None else value_of(metric, after),
        "delta": None if delta is None else change_of(metric, delta),
        "verdict": _verdict(metric, delta, None, None, None),
        "share_before": before if share else None,
        "share_after": after if share else None,
        "seconds": None if number(step.seconds) is None else seconds(step.seconds),
        "tokens": None if step.tokens is None else short(step.tokens),
        "here": here,
        "href": None if here else report_of(step.run_dir or entry.run_dir, run_dir),
    }


def report_of(other: Any, run_dir: Path) -> str | None:
    """Relative link to another run's report, where it stands on this disk."""
    if not isinstance(other, str) or not other or "\0" in other:
        return None
    page = Path(other) / "report.html"
    if not page.is_file():
        return None
    return quote(Path(os.path.relpath(page.resolve(), run_dir.resolve())).as_posix())


def cards_of(
    result: StageResult | None, plan: PlanRecord, rows: list[dict[str, Any]], last_step: float, verified: Any
) -> list[dict[str, str]]:
    """The summary: tokens, seconds, memory, steps, verification. What result.json does not tell is taken from the rows
    of metrics.jsonl."""

    def last(key: str) -> float | None:
        return max((x for x in (number(row.get(key)) for row in rows) if x is not None), default=None)

    known = result or StageResult("")
    tokens, spent = known.tokens or last("tokens_seen"), number(known.seconds) or last("time_s")
    cards = []

    def card(label: str, value: str, note: str = "", tone: str = "") -> None:
        if value != DASH:
            cards.append({"label": label, "value": value, "note": note, "tone": tone})

    if verified is not None or result is not None:
        word = {True: "Yes", False: "No"}.get(verified, "Not yet")
        note = {True: "proved to reload", False: "do not build on it"}.get(verified, "not proved to reload")
        tone = {True: "good", False: "bad"}.get(verified, "")
        card("Artifact verified", word, note, tone)
    steps, total = known.steps or last_step or None, plan.preview.total_steps
    card("Steps", count(steps), f"of {count(total)}" if total and steps is not None and steps < total else "")
    rate = tokens / spent if tokens is not None and spent else None
    card("Tokens", short(tokens), "" if rate is None else f"{short(rate)} a second")
    card("Time", seconds(spent))
    memory, guess = number(known.peak_memory_gb), number(plan.preview.memory_gb_estimate)
    note = "" if guess is None else f"estimated {guess:.2f} GB"
    if memory:
        card("Peak memory", f"{memory:.2f} GB", note)
    elif guess is not None:
        card("Memory", f"{guess:.2f} GB", "estimated")
    before, after = number(known.reward_before), number(known.reward_after)
    if after is not None:
        card(
            f"Reward ({plan.reward})" if plan.reward else "Reward",
            decimal(after),
            "" if before is None else f"from {decimal(before)}",
        )
    card("KL to reference", decimal(known.kl_to_reference), "nats a completion")
    return cards


def time_parts_of(result: StageResult | None) -> list[dict[str, Any]]:
    """Shares of the run's seconds, the greatest first; what no part claims is `other`."""
    known = result or StageResult("")
    parts = {name: number(value) or 0.0 for name, value in known.time_by_part.items()}
    spent, total = sum(parts.values()), number(known.seconds) or 0.0
    if spent <= 0:
        return []
    if total > 1.005 * spent:
        parts["other"] = parts.get("other", 0.0) + total - spent
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda pair: (pair[0] == "other", -pair[1]))
    return [{"name": name, "seconds": seconds(x), "share": x / whole} for name, x in ordered if x > 0]
