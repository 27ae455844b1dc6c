"""The head of the report: the headline, the pipeline, the summary and where the time went."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.report.charts import Series
from core.report.format import (
    DASH,
    as_dict,
    as_list,
    change_of,
    count,
    decimal,
    first,
    interval_of,
    is_share,
    lower_is_better,
    number,
    seconds,
    short,
    value_of,
)


def hero_of(result: dict[str, Any], plan: dict[str, Any], series: list[Series], last_step: float) -> dict[str, Any]:
    """The headline: values before and after as texts, their places on one axis, the verdict."""
    metric = str(first(result.get("metric"), "score"))
    start, before, after = (number(result.get(key)) for key in ("start", "before", "after"))
    final = after is not None
    if not result:
        metric, before, after = _so_far(series)
    interval, delta_interval = interval_of(result.get("interval")), interval_of(result.get("delta_interval"))
    delta = after - before if before is not None and after is not None else None
    total = number(plan.get("total_steps"))
    return {
        "metric": metric,
        "final": final,
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
        "item_count": None if number(result.get("items")) is None else count(result["items"]),
        "scale": _scale(metric, start, before, after, interval),
        "step": count(last_step),
        "total_steps": None if total is None else count(total),
        "progress": None if not total else min(1.0, last_step / total),
    }


def _so_far(series: list[Series]) -> tuple[str, float | None, float | None]:
    """First and last value of the first evaluation metric, for a run without result.json."""
    evaluations = [item for item in series if item.name.startswith("eval/")]
    if not evaluations:
        return "score", None, None
    chosen = next((item for item in evaluations if item.name == "eval/score"), evaluations[0])
    known = chosen.known
    return f"held-out {chosen.name.split('/', 1)[-1]}", known[0], known[-1] if len(known) > 1 else None


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


def pipeline_of(result: dict[str, Any], plan: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """The stages in order with their own before and after; the plan's stages where nothing is finished."""
    planned = {str(item.get("stage")): item for item in as_list(plan.get("stages")) if isinstance(item, dict)}
    done = [item for item in as_list(result.get("pipeline")) if isinstance(item, dict)]
    here = str(first(result.get("stage"), plan.get("stage"), ""))
    if done and here and here not in {str(item.get("stage")) for item in done}:
        keys = ("stage", "before", "after", "metric", "seconds", "tokens")
        done.append({**{key: result.get(key) for key in keys}, "reused": False})
    steps = []
    for item in done or planned.values():
        stage = str(item.get("stage", "?"))
        plan_item = as_dict(planned.get(stage))
        metric = str(first(item.get("metric"), result.get("metric"), "score"))
        before, after = number(item.get("before")), number(item.get("after"))
        state = {"reuse": "reused", "resume": "resumed"}.get(str(plan_item.get("state")), "run")
        if item.get("reused") is not None:
            state = "reused" if item["reused"] else "run" if state == "reused" else state
        delta = after - before if before is not None and after is not None else None
        steps.append(
            {
                "stage": stage,
                "algorithm": str(plan_item.get("algorithm") or ""),
                "state": state,
                "metric": metric if after is not None or before is not None else "",
                "before": None if before is None else value_of(metric, before),
                "after": None if after is None else value_of(metric, after),
                "delta": None if delta is None else change_of(metric, delta),
                "verdict": _verdict(metric, delta, None, None, None),
                "share_before": before if is_share(metric, before, after) and before is not None else None,
                "share_after": after if is_share(metric, before, after) and after is not None else None,
                "seconds": None if number(item.get("seconds")) is None else seconds(item["seconds"]),
                "tokens": None if number(item.get("tokens")) is None else short(item["tokens"]),
                "here": stage == here,
                "href": None if stage == here else report_of(item.get("run_dir") or plan_item.get("run_dir"), run_dir),
            }
        )
    return steps


def report_of(other: Any, run_dir: Path) -> str | None:
    """Relative link to another run's report, where it stands on this disk."""
    if not isinstance(other, str) or not other or "\0" in other:
        return None
    page = Path(other) / "report.html"
    if not page.is_file():
        return None
    return quote(Path(os.path.relpath(page.resolve(), run_dir.resolve())).as_posix())


def cards_of(
    result: dict[str, Any], plan: dict[str, Any], rows: list[dict[str, Any]], last_step: float, verified: Any
) -> list[dict[str, str]]:
    """The summary: tokens, seconds, memory, steps, verification."""

    def last(key: str) -> float | None:
        return max((x for x in (number(row.get(key)) for row in rows) if x is not None), default=None)

    tokens, spent = first(result.get("tokens"), last("tokens_seen")), first(result.get("seconds"), last("time_s"))
    cards = []

    def card(label: str, value: str, note: str = "", tone: str = "") -> None:
        if value != DASH:
            cards.append({"label": label, "value": value, "note": note, "tone": tone})

    if verified is not None or result:
        word = {True: "Yes", False: "No"}.get(verified, "Not yet")
        note = {True: "proved to reload", False: "do not build on it"}.get(verified, "not proved to reload")
        tone = {True: "good", False: "bad"}.get(verified, "")
        card("Artifact verified", word, note, tone)
    steps = first(number(result.get("steps")), last_step or None)
    total = number(plan.get("total_steps"))
    card("Steps", count(steps), f"of {count(total)}" if total and steps is not None and steps < total else "")
    rate = tokens / spent if number(tokens) is not None and number(spent) else None
    card("Tokens", short(tokens), "" if rate is None else f"{short(rate)} a second")
    card("Time", seconds(spent))
    memory, guess = number(result.get("peak_memory_gb")), number(plan.get("memory_gb_estimate"))
    note = "" if guess is None else f"estimated {guess:.2f} GB"
    if memory is not None:
        card("Peak memory", f"{memory:.2f} GB", note)
    elif guess is not None:
        card("Memory", f"{guess:.2f} GB", "estimated")
    before, after = result.get("reward_before"), result.get("reward_after")
    if number(after) is not None:
        card("Reward", decimal(after), "" if number(before) is None else f"from {decimal(before)}")
    card("KL to reference", decimal(result.get("kl_to_reference")), "nats a completion")
    return cards


def time_parts_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares of the run's seconds, the greatest first; what no part claims is `other`."""
    parts = {str(name): number(value) or 0.0 for name, value in as_dict(result.get("time_by_part")).items()}
    spent, total = sum(parts.values()), number(result.get("seconds")) or 0.0
    if spent <= 0:
        return []
    if total > 1.005 * spent:
        parts["other"] = parts.get("other", 0.0) + total - spent
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda pair: (pair[0] == "other", -pair[1]))
    return [{"name": name, "seconds": seconds(x), "share": x / whole} for name, x in ordered if x > 0]
