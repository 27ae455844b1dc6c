"""Curves as inline SVG, made of whatever metrics a run wrote. No dependency, no script needed to see them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from core.report.format import decimal, number, short

AXES = ("step", "tokens_seen", "time_s", "version")
GROUPS: tuple[tuple[str, str], ...] = (
    ("throughput", r"per_s$|per_second|throughput|seconds|time_s$|_s$|memory"),
    ("lr", r"(^|_)lr($|_)|learning_rate"),
    ("kl", r"(^|_)kl($|_)"),
    ("entropy", r"entropy"),
    ("accuracy", r"accuracy|(^|_)acc($|_)"),
    ("loss", r"loss|nll|perplexity"),
    ("score", r"score|exact|pass|win"),
    ("reward", r"reward|margin"),
    ("length", r"length|tokens|(^|_)len($|_)"),
)
"""Well-known words of metric names, looked for in this order."""
ORDER = ("score", "accuracy", "reward", "loss", "kl", "entropy", "length", "lr", "throughput", "other")
"""Order in which the groups are shown."""

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
MAX_POINTS = 360
"""Points drawn for one line; more are thinned out, keeping each bucket's least and greatest value."""
SMOOTH_FROM = 30
"""Lines with more points than this are smoothed over their faint raw points."""
MAX_SEGMENTS = 40
LARGEST = 1e30


@dataclass
class Series:
    """One metric over steps. `values` holds None where a value was missing, NaN or infinite: a gap in the line."""

    name: str
    steps: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def known(self) -> list[float]:
        """The values that can be drawn."""
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Chart:
    """One drawn chart: its title, group, end value as text, notes, and the SVG with its hover data (JSON)."""

    title: str
    group: str
    last: str
    names: tuple[str, ...]
    note: str
    svg: str
    data: str


def group_of(name: str) -> str:
    """The group that a metric name belongs to, by the well-known words in what follows its last slash."""
    tail = name.rsplit("/", 1)[-1].lower().replace(".", "_").replace("-", "_")
    return next((group for group, words in GROUPS if re.search(words, tail)), "other")


def series_of(rows: Iterable[Mapping[str, Any]]) -> list[Series]:
    """Metrics of metrics.jsonl rows as series, in order of steps; a step written twice keeps its last value."""
    found: dict[str, dict[float, float | None]] = {}
    for place, row in enumerate(rows):
        step = number(row.get("step"))
        for name, raw in row.items():
            if name in AXES or isinstance(raw, str | list | dict):
                continue
            value = number(float(raw) if isinstance(raw, bool) else raw)
            if value is not None and abs(value) > LARGEST:
                value = None
            found.setdefault(str(name), {})[place if step is None else step] = value
    result = []
    for name, points in found.items():
        steps = sorted(points)
        series = Series(name, steps, [points[step] for step in steps])
        if series.known:
            result.append(series)
    return result


def charts_of(series: Sequence[Series]) -> list[Chart]:
    """One chart for each metric, in order of groups; `eval/x` is drawn into the chart of `<stage>/x`."""
    by_tail: dict[str, list[Series]] = {}
    for item in series:
        by_tail.setdefault(item.name.split("/", 1)[-1], []).append(item)
    charts = []
    for tail, items in by_tail.items():
        lines = sorted(items, key=lambda item: item.name.startswith("eval/"))
        charts.append((ORDER.index(group_of(tail)), draw(tail, group_of(tail), lines)))
    return [chart for _, chart in sorted(charts, key=lambda pair: pair[0])]


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about `wanted` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.78)
    first = math.ceil(low / gap - 1e-9)
    return [(first + i) * gap for i in range(math.floor(high / gap + 1e-9) - first + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Texts of an axis's ticks, all with the same number of decimals."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e4:
        return [short(tick).replace("-", "−") for tick in ticks]
    if 0 < largest < 1e-3:
        return ["0" if abs(tick) < largest * 1e-9 else re.sub(r"e-0?", "e−", f"{tick:.2g}") for tick in ticks]
    places = 0
    while places < 6 and any(abs(tick - round(tick, places)) > 1e-9 * max(1.0, largest) for tick in ticks):
        places += 1
    return [f"{tick:.{places}f}".replace("-", "−") for tick in ticks]


def smooth(values: Sequence[float | None], width: int) -> list[float | None]:
    """Centred moving average over `width` points, gaps left out of the mean and kept as gaps."""
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    half, size = max(1, width // 2), len(values)
    result: list[float | None] = []
    for i, value in enumerate(values):
        reach = max(min(half, 2), min(half, i, size - 1 - i))
        start, end = max(0, i - reach), min(size, i + reach + 1)
        result.append(None if value is None else (sums[end] - sums[start]) / max(1, counts[end] - counts[start]))
    return result


def segments(steps: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Runs of points between gaps; a line with very many gaps is drawn through."""
    parts: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if value is None:
            if parts[-1]:
                parts.append([])
        else:
            parts[-1].append((step, value))
    parts = [part for part in parts if part]
    return [[point for part in parts for point in part]] if len(parts) > MAX_SEGMENTS else parts


def thin(points: list[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `most` of the points: first, last, and of each bucket the least and the greatest."""
    if len(points) <= most:
        return points
    buckets = max(1, (most - 2) // 2)
    inner, kept = points[1:-1], [points[0]]
    for i in range(buckets):
        bucket = inner[i * len(inner) // buckets : (i + 1) * len(inner) // buckets]
        if bucket:
            extremes = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
            kept.extend(sorted(extremes))
    return [*kept, points[-1]]


def y_range(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits of the values with a little air. A few far outliers do not flatten the rest: where the whole range
    is over 20 times that of the middle 96%, the axis shows the middle."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 50:
        cut = max(1, len(ordered) // 50)
        inner_low, inner_high = ordered[cut], ordered[-1 - cut]
        if inner_high > inner_low and high - low > 20 * (inner_high - inner_low):
            low, high = inner_low, inner_high
    size = max(abs(low), abs(high))
    if high - low <= max(1e-12 * size, 1e-30):
        air = 0.1 * size if size > 1e-30 else 1.0
        return low - air, high + air
    air = 0.06 * (high - low)
    return (low if low >= 0 and low < air else low - air), high + air


def draw(title: str, group: str, lines: Sequence[Series]) -> Chart:
    """A chart of one or more series over a shared axis of steps."""
    steps = [step for line in lines for step, value in zip(line.steps, line.values, strict=True) if value is not None]
    values = [value for line in lines for value in line.known]
    x0, x1 = min(steps), max(steps)
    if x1 <= x0:
        x0, x1 = x0 - 1, x1 + 1
    y0, y1 = y_range(values)

    def x_of(step: float) -> float:
        return LEFT + (step - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        share = (value - y0) / (y1 - y0)
        return TOP + (1 - min(1.02, max(-0.02, share))) * (HEIGHT - TOP - BOTTOM)

    parts = _axes((x0, x1), (y0, y1), x_of, y_of)
    hover, last, missing = [], "", 0
    for place, line in enumerate(lines):
        kind = "e" if line.name.startswith("eval/") else "t"
        long = len(line.known) > SMOOTH_FROM
        drawn = smooth(line.values, len(line.values) // 14) if long else line.values
        runs = segments(line.steps, drawn)
        budget = max(4, MAX_POINTS // max(1, len(runs)))
        if long:
            raw = [point for run in segments(line.steps, line.values) for point in thin(run, budget)]
            dots = "".join(f"M{x_of(x):.1f} {y_of(y):.1f}h0" for x, y in raw)
            parts.append(f'<path class="raw s{place} {kind}" d="{dots}"/>')
        thinned = [thin(run, budget) for run in runs]
        for run in thinned:
            path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in run)
            parts.append(f'<path class="line s{place} {kind}" d="{path}{"h0" if len(run) == 1 else ""}"/>')
        if not long:
            dots = "".join(f"M{x_of(x):.1f} {y_of(y):.1f}h0" for run in thinned for x, y in run)
            parts.append(f'<path class="dots s{place} {kind}" d="{dots}"/>')
        points = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if value is not None]
        marks = thin(points, MAX_POINTS)
        means = dict(zip(line.steps, drawn, strict=True)) if long else {}
        hover.append(
            {
                "n": line.name,
                "k": f"s{place} {kind}",
                "x": [_number(step) for step, _ in marks],
                "y": [_number(value) for _, value in marks],
                "m": [_number(means.get(step)) for step, _ in marks] if long else None,
            }
        )
        end = next(value for value in reversed(drawn) if value is not None)
        last = last or decimal(end)
        missing += sum(value is None for value in line.values)
    beyond = sum(not y0 <= value <= y1 for value in values)
    notes = [f"{missing} not finite"] * bool(missing) + [f"{beyond} beyond the axis"] * bool(beyond)
    names = tuple(line.name for line in lines)
    label = f"{', '.join(names)} over steps {short(min(steps))} to {short(max(steps))}, ending at {last}"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
    box = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
    data = json.dumps({"x": [x0, x1], "y": [y0, y1], "box": box, "s": hover}, separators=(",", ":"))
    return Chart(title, group, last, names, ", ".join(notes), svg, data)


def _axes(
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> list[str]:
    parts = []
    y_ticks = nice_ticks(*y_ends)
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = y_of(tick)
        parts.append(f'<path class="gl" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.2:.1f}" text-anchor="end">{label}</text>')
    x_ticks = [tick for tick in nice_ticks(*x_ends, 5) if abs(tick - round(tick)) < 1e-9]
    for tick, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = x_of(tick)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<path class="base" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return parts


def _number(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}") if value != int(value) else int(value)
