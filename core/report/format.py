"""Numbers and JSON values as people read them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from core.results import Retained

Pairs = list[tuple[str, str]]
LOWER_IS_BETTER = re.compile(r"loss|perplexity|\bppl\b|nll|error|latency", re.IGNORECASE)
SHARE = re.compile(r"accuracy|\brate\b|share|fraction|pass|exact|win", re.IGNORECASE)
DASH = "–"
MINUS = "−"


def number(value: Any) -> float | None:
    """`value` as a finite float, else None. Texts are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def decimal(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits: 0.0123, 4.57, 1,234, 2.1e-05; a dash for none."""
    x = number(value)
    if x is None:
        return DASH
    if x == 0:
        return "0"
    size = abs(x)
    if size >= 1e9 or size < 1e-4:
        return f"{x:.{digits - 1}e}".replace("-", MINUS)
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{x:,.{places}f}"
    return text.replace("-", MINUS)


def count(value: Any) -> str:
    """A whole number with thousands separators; a dash for none."""
    x = number(value)
    return DASH if x is None else f"{round(x):,}".replace("-", MINUS)


def short(value: Any) -> str:
    """A large number in few characters: 951, 12.3k, 4.56M, 1.2B; a dash for none."""
    x = number(value)
    if x is None:
        return DASH
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}" if abs(x) < 999.5 * size else f"{x / size:.0f}{unit}"
    return f"{x:.3g}"


def seconds(value: Any) -> str:
    """A duration given in seconds: 0.4 s, 38 s, 4 min 05 s, 2 h 07 min; a dash for none."""
    x = number(value)
    if x is None:
        return DASH
    if x < 10:
        return f"{x:.1f} s"
    if round(x) < 60:
        return f"{x:.0f} s"
    minutes, rest = divmod(round(x), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def is_share(metric: str, *values: Any) -> bool:
    """Whether a metric is a share of 1 that reads better in percent."""
    known = [x for x in map(number, values) if x is not None]
    return bool(known) and bool(SHARE.search(metric)) and all(-1 <= x <= 1 for x in known)


def value_of(metric: str, value: Any) -> str:
    """A metric's value: in percent where it is a share of 1."""
    if number(value) is None:
        return DASH
    return f"{100 * value:.1f}%".replace("-", MINUS) if is_share(metric, value) else decimal(value)


def change_of(metric: str, value: Any) -> str:
    """A signed change of a metric: in percentage points where it is a share of 1."""
    x = number(value)
    if x is None:
        return DASH
    text = f"{abs(100 * x):.1f}" if is_share(metric, x) else decimal(abs(x))
    return f"{'+' if x > 0 else MINUS if x < 0 else '±'}{text}"


def lower_is_better(metric: str) -> bool:
    """Whether a fall of the metric is a gain (losses, perplexities, errors)."""
    return bool(LOWER_IS_BETTER.search(metric))


def flat(value: Any, prefix: str = "") -> Pairs:
    """Nested JSON as (dotted key, text) pairs; empty values are left out."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if value is None or value in ("", []):
        return []
    return [(prefix, text_of(value))]


def as_dict(value: Any) -> dict[str, Any]:
    """`value` where it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def text_of(value: Any) -> str:
    """A JSON value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10000 else str(value)
    if isinstance(value, float):
        return decimal(value, 4)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(text_of(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def interval_of(value: Any) -> tuple[float, float] | None:
    """A pair of finite numbers, the lower one first, else None."""
    ends = [number(end) for end in as_list(value)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return min(ends[0], ends[1]), max(ends[0], ends[1])


def change_text(row: Retained) -> str:
    """What was forgotten of a measure: before → after, the change with its interval, and how many items."""
    low, high = [*row.interval, None, None][:2]
    change = number(row.change)
    sign = "+" if change is not None and change > 0 else ""
    return (
        f"{decimal(row.before)} → {decimal(row.after)} (change {sign}{decimal(change)}, 95 % "
        f"{decimal(low)} … {decimal(high)}, {count(row.items)} items)"
    )
