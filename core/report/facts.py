"""Reads a run folder and says what is in it, as texts and numbers ready to be shown. Everything may be missing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.jsonl import METRICS_FILE, SAMPLES_FILE, read_rows
from core.report.charts import Chart, Series, charts_of, series_of
from core.report.format import (
    DASH,
    MINUS,
    change_of,
    count,
    decimal,
    is_share,
    lower_is_better,
    number,
    seconds,
    short,
    value_of,
)

KNOWN_VERSION = 1
MAX_SAMPLES = 24
MAX_TEXT = 6000
"""Characters shown of one prompt or completion."""
LOG_LINES = 80
Pairs = list[tuple[str, str]]


@dataclass
class Facts:
    """The report's content. Texts are raw (the template escapes them); shares are 0..1 of a drawing's width."""

    title: str
    stage: str
    algorithm: str
    run_name: str
    state: str
    """"finished", "unverified" (finished, not proved to reload), "failed" (verification failed) or "unfinished"."""
    hero: dict[str, Any]
    pipeline: list[dict[str, Any]]
    cards: list[dict[str, str]]
    time_parts: list[dict[str, Any]]
    charts: list[Chart]
    samples: dict[str, Any]
    trained: dict[str, Any]
    tables: list[dict[str, Any]]
    lineage: dict[str, Any]
    checks: dict[str, Any]
    warnings: list[str]
    config: str
    log: str
    problems: list[str]


def collect(run_dir: Path) -> Facts:
    """Everything that the files of `run_dir` tell. Files that cannot be read are named in `problems`."""
    problems: list[str] = []
    plan, result, artifact = (_read(run_dir / f"{name}.json", problems) for name in ("plan", "result", "artifact"))
    rows = list(read_rows(run_dir / METRICS_FILE))
    series = series_of(rows)
    stage = str(_first(result.get("stage"), plan.get("stage"), artifact.get("stage"), "run"))
    algorithm = str(_first(result.get("algorithm"), plan.get("algorithm"), artifact.get("algorithm"), "") or "")
    verification = _dict(artifact.get("verification"))
    verified = _first(verification.get("ok"), result.get("verified"))
    last_step = max((number(row.get("step")) or 0 for row in rows), default=0)
    state = "unfinished" if not result else {True: "finished", False: "failed"}.get(verified, "unverified")
    return Facts(
        title=" · ".join(part for part in (stage, algorithm) if part),
        stage=stage,
        algorithm=algorithm,
        run_name="/".join(run_dir.resolve().parts[-2:]),
        state=state,
        hero=_hero(result, plan, series, last_step),
        pipeline=_pipeline(result, plan, run_dir),
        cards=_cards(result, plan, rows, last_step, verified),
        time_parts=_time_parts(result),
        charts=charts_of(series),
        samples=_samples(list(read_rows(run_dir / SAMPLES_FILE))),
        trained=_trained(plan, artifact),
        tables=_tables(plan),
        lineage=_lineage(plan, artifact, run_dir),
        checks=_checks(verification, verified),
        warnings=[_text(item) for item in _list(plan.get("warnings"))],
        config=_config(run_dir),
        log=_tail(run_dir / "log.txt"),
        problems=problems,
    )


def flat(value: Any, prefix: str = "") -> Pairs:
    """Nested JSON as (dotted key, text) pairs; empty values are left out."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if value is None or value in ("", []):
        return []
    return [(prefix, _text(value))]


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read as JSON: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    if value.get("version", KNOWN_VERSION) != KNOWN_VERSION:
        problems.append(f"{path.name} has version {value['version']!r}; this report knows version {KNOWN_VERSION}")
    return value


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10000 else str(value)
    if isinstance(value, float):
        return decimal(value, 4)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _interval(value: Any) -> tuple[float, float] | None:
    ends = [number(end) for end in _list(value)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return min(ends[0], ends[1]), max(ends[0], ends[1])


def _hero(result: dict[str, Any], plan: dict[str, Any], series: list[Series], last_step: float) -> dict[str, Any]:
    metric = str(_first(result.get("metric"), "score"))
    start, before, after = (number(result.get(key)) for key in ("start", "before", "after"))
    final = after is not None
    if not result:
        metric, before, after = _so_far(series)
    interval, delta_interval = _interval(result.get("interval")), _interval(result.get("delta_interval"))
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
    """"better", "worse" or "open" (the interval holds no change)."""
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


def _pipeline(result: dict[str, Any], plan: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    planned = {str(item.get("stage")): item for item in _list(plan.get("stages")) if isinstance(item, dict)}
    done = [item for item in _list(result.get("pipeline")) if isinstance(item, dict)]
    here = str(_first(result.get("stage"), plan.get("stage"), ""))
    if done and here and here not in {str(item.get("stage")) for item in done}:
        keys = ("stage", "before", "after", "metric", "seconds", "tokens")
        done.append({**{key: result.get(key) for key in keys}, "reused": False})
    steps = []
    for item in done or planned.values():
        stage = str(item.get("stage", "?"))
        plan_item = _dict(planned.get(stage))
        metric = str(_first(item.get("metric"), result.get("metric"), "score"))
        before, after = number(item.get("before")), number(item.get("after"))
        state = str(plan_item.get("state", "run"))
        reused = item.get("reused")
        delta = after - before if before is not None and after is not None else None
        steps.append(
            {
                "stage": stage,
                "algorithm": str(plan_item.get("algorithm") or ""),
                "state": {"reuse": "reused", "resume": "resumed"}.get(state, "run")
                if reused is None
                else "reused" if reused else "resumed" if state == "resume" else "run",
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
                "href": None if stage == here else _report_of(item.get("run_dir") or plan_item.get("run_dir"), run_dir),
            }
        )
    return steps


def _report_of(other: Any, run_dir: Path) -> str | None:
    """Relative link to another run's report, where it stands on this disk."""
    if not isinstance(other, str) or not other or "\0" in other:
        return None
    page = Path(other) / "report.html"
    if not page.is_file():
        return None
    return quote(Path(os.path.relpath(page.resolve(), run_dir.resolve())).as_posix())


def _cards(
    result: dict[str, Any], plan: dict[str, Any], rows: list[dict[str, Any]], last_step: float, verified: Any
) -> list[dict[str, str]]:
    def last(key: str) -> float | None:
        return max((x for x in (number(row.get(key)) for row in rows) if x is not None), default=None)

    tokens, spent = _first(result.get("tokens"), last("tokens_seen")), _first(result.get("seconds"), last("time_s"))
    cards = []

    def card(label: str, value: str, note: str = "", tone: str = "") -> None:
        if value != DASH:
            cards.append({"label": label, "value": value, "note": note, "tone": tone})

    if verified is not None or result:
        word = {True: "Yes", False: "No"}.get(verified, "Not yet")
        note = {True: "proved to reload", False: "do not build on it"}.get(verified, "not proved to reload")
        tone = {True: "good", False: "bad"}.get(verified, "")
        card("Artifact verified", word, note, tone)
    steps = _first(number(result.get("steps")), last_step or None)
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
    card("KL to reference", decimal(result.get("kl_to_reference")), "nats a token")
    return cards


def _time_parts(result: dict[str, Any]) -> list[dict[str, Any]]:
    parts = {str(name): number(value) or 0.0 for name, value in _dict(result.get("time_by_part")).items()}
    spent, total = sum(parts.values()), number(result.get("seconds")) or 0.0
    if spent <= 0:
        return []
    if total > 1.005 * spent:
        parts["other"] = parts.get("other", 0.0) + total - spent
    whole = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda pair: (pair[0] == "other", -pair[1]))
    return [{"name": name, "seconds": seconds(x), "share": x / whole} for name, x in ordered if x > 0]


def _clip(text: Any) -> str:
    text = "" if text is None else text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({count(len(text) - MAX_TEXT)} more characters)"


def _samples(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_when: dict[str, dict[Any, dict[str, Any]]] = {"before": {}, "after": {}, "step": {}}
    for place, row in enumerate(rows):
        when = row.get("when")
        if when in by_when:
            index = _text(row.get("index", place))
            by_when[when][(_text(row.get("step")), index) if when == "step" else index] = row
    pairs = []
    for index in dict.fromkeys([*by_when["before"], *by_when["after"]]):
        before, after = by_when["before"].get(index), by_when["after"].get(index)
        known = after or before or {}
        pairs.append(
            {
                "index": index,
                "prompt": _clip(known.get("prompt")),
                "answer": None if known.get("answer") is None else _clip(known["answer"]),
                "before": _side(before),
                "after": _side(after),
                "winner": _winner(before, after),
            }
        )
    steps = [{"step": _text(row.get("step")), "prompt": _clip(row.get("prompt")), **(_side(row) or {})}
             for row in list(by_when["step"].values())[-12:]]  # fmt: skip
    compared = [pair["winner"] for pair in pairs if pair["winner"]]
    tally = {name: compared.count(key) for name, key in (("better", "after"), ("equal", "tie"), ("worse", "before"))}
    return {"pairs": pairs[:MAX_SAMPLES], "hidden": max(0, len(pairs) - MAX_SAMPLES), "tally": tally,
            "compared": len(compared), "steps": steps}  # fmt: skip


def _side(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    scores = [(name, short(row[name]).replace("-", MINUS)) for name in ("score", "reward") if number(row.get(name)) is not None]
    return {"completion": _clip(row.get("completion")), "scores": scores}


def _winner(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """"before", "after" or "tie" by score, else by reward; empty where neither can be compared."""
    for key in ("score", "reward"):
        old, new = number((before or {}).get(key)), number((after or {}).get(key))
        if old is not None and new is not None:
            return "after" if new > old else "before" if new < old else "tie"
    return ""


def _trained(plan: dict[str, Any], artifact: dict[str, Any]) -> dict[str, Any]:
    trained = dict(_dict(artifact.get("trained")))
    trainable, total = number(trained.pop("trainable", None)), number(trained.pop("total", None))
    pairs = [(f"model {key}" if key != "source" else "model", text) for key, text in flat(_dict(plan.get("model")))]
    if trainable is not None:
        pairs.append(("trained parameters", count(trainable)))
    if total is not None:
        pairs.append(("all parameters", count(total)))
    pairs.extend(flat(trained))
    for name, role in _dict(plan.get("roles")).items():
        pairs.extend((f"role {key}".replace(".", " "), text) for key, text in flat(role, str(name)))
    share = trainable / total if trainable is not None and total else None
    return {
        "pairs": pairs,
        "share": None if share is None else min(1.0, max(0.0, share)),
        "share_text": "" if share is None else f"{100 * share:.3g}%",
        "rows": [row if isinstance(row, str) else "\n".join(f"{key}: {text}" for key, text in flat(row))
                 for row in _list(plan.get("trained_rows"))],
    }  # fmt: skip


def _tables(plan: dict[str, Any]) -> list[dict[str, Any]]:
    data, tables = dict(_dict(plan.get("data"))), []
    pairs: Pairs = []
    for name, part in data.items():
        pairs.extend(flat(part, str(name)) if isinstance(part, dict) else flat({name: part}))
    if pairs:
        tables.append({"title": "Data", "pairs": [(key.replace(".", " "), text) for key, text in pairs]})
    batch = flat(_dict(plan.get("batch")))
    if number(plan.get("total_steps")) is not None:
        batch.append(("total steps", count(plan["total_steps"])))
    if batch:
        tables.append({"title": "Batch", "pairs": [(key.replace("_", " "), text) for key, text in batch]})
    return tables


def _lineage(plan: dict[str, Any], artifact: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    owner = _dict(plan.get("owner"))
    pairs = [("key", str(key))] if (key := _first(artifact.get("key"), plan.get("key"))) else []
    if owner:
        pairs.append(("stage from", " ".join(str(owner[k]) for k in ("distribution", "version") if owner.get(k))))
    parents = [
        {
            "stage": str(parent.get("stage", "?")),
            "key": str(parent.get("key", "")),
            "href": _report_of(parent.get("run_dir"), run_dir),
        }
        for parent in _list(artifact.get("parents"))
        if isinstance(parent, dict)
    ]
    files = [(str(name), str(digest)) for name, digest in _dict(artifact.get("files")).items()]
    versions = [(str(name), _text(value)) for name, value in _dict(artifact.get("versions")).items()]
    return {"pairs": pairs, "parents": parents, "files": files, "versions": versions}


def _checks(verification: dict[str, Any], verified: Any) -> dict[str, Any]:
    rows = [
        {"name": str(row.get("name", "?")), "ok": row.get("ok"), "detail": _text(row.get("detail") or "")}
        for row in _list(verification.get("checks"))
        if isinstance(row, dict)
    ]
    return {"ok": verified, "rows": rows}


def _config(run_dir: Path) -> str:
    for name in ("config.yaml", "config.json"):
        path = run_dir / name
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace").rstrip()
    return ""


def yaml_html(text: str) -> str:
    """YAML or JSON text as escaped HTML with its keys and comments marked."""
    lines = []
    for raw in text.splitlines():
        line = escape(raw, quote=True)
        if raw.lstrip().startswith("#"):
            lines.append(f'<span class="c">{line}</span>')
        else:
            lines.append(re.sub(r"^(\s*(?:- )?)((?:&quot;)?[\w./-]+(?:&quot;)?)(?=:(?:\s|$))", r'\1<span class="k">\2</span>', line))
    return "\n".join(lines)


def _tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65536))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])

