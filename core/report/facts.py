"""Reads a run folder and says what is in it, as texts and numbers ready to be shown. Everything may be missing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from core.data.info import DatasetInfo
from core.jsonl import METRICS_FILE, SAMPLES_FILE, read_rows
from core.planning.plan_record import PlanRecord, StageOwner, StagePreview
from core.report.charts import Chart, charts_of, series_of
from core.report.format import (
    MINUS,
    Pairs,
    as_dict,
    as_list,
    change_text,
    count,
    decimal,
    first,
    flat,
    number,
    seconds,
    short,
    text_of,
)
from core.report.headline import cards_of, hero_of, pipeline_of, report_of, time_parts_of
from core.report.sets import example_pairs, mixture_pairs, transform_pairs
from core.results import StageResult

KNOWN_VERSIONS = (1, 2)
MAX_SAMPLES = 24
MAX_TEXT = 6000
"""Characters shown of one prompt or completion."""
LOG_LINES = 80
YAML_KEY = re.compile(r"^(\s*(?:- )?)((?:&quot;)?[\w./-]+(?:&quot;)?)(?=:(?:\s|$))")


@dataclass
class Facts:
    """The report's content. Texts are raw (the template escapes them); shares are 0..1 of a drawing's width."""

    title: str
    stage: str
    algorithm: str
    run_name: str
    state: str
    """One of "finished", "unverified" (not proved to reload), "failed" (verification failed) and "unfinished"."""
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
    planned, told, artifact = (_read(run_dir / f"{name}.json", problems) for name in ("plan", "result", "artifact"))
    plan, result = PlanRecord.from_json(planned), StageResult.from_json(told) if told else None
    rows = list(read_rows(run_dir / METRICS_FILE))
    series = series_of(rows)
    stage = (result.stage if result else "") or plan.stage or str(artifact.get("stage") or "run")
    algorithm = (result.algorithm if result else "") or plan.algorithm or str(artifact.get("algorithm") or "")
    verification = as_dict(artifact.get("verification"))
    verified = first(verification.get("ok"), result.verified if result else None)
    last_step = max((number(row.get("step")) or 0 for row in rows), default=0)
    state = "unfinished" if result is None else {True: "finished", False: "failed"}.get(verified, "unverified")
    return Facts(
        title=" · ".join(part for part in (stage, algorithm) if part),
        stage=stage,
        algorithm=algorithm,
        run_name="/".join(run_dir.resolve().parts[-2:]),
        state=state,
        hero=hero_of(result, plan, series, last_step),
        pipeline=pipeline_of(result, plan, run_dir),
        cards=cards_of(result, plan, rows, last_step, verified),
        time_parts=time_parts_of(result),
        charts=charts_of(series),
        samples=_samples(list(read_rows(run_dir / SAMPLES_FILE))),
        trained=_trained(plan, artifact, result),
        tables=_tables(plan, result),
        lineage=_lineage(plan, artifact, run_dir),
        checks=_checks(verification, verified),
        warnings=plan.warnings,
        config=_config(run_dir),
        log=_tail(run_dir / "log.txt"),
        problems=problems,
    )


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
    if value.get("version", 1) not in KNOWN_VERSIONS:
        problems.append(f"{path.name} has version {value['version']!r}; this report knows up to {KNOWN_VERSIONS[-1]}")
    return value


def _clip(text: Any) -> str:
    text = "" if text is None else text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({count(len(text) - MAX_TEXT)} more characters)"


def _samples(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_when: dict[str, dict[Any, dict[str, Any]]] = {"before": {}, "after": {}, "step": {}}
    for place, row in enumerate(rows):
        when = row.get("when")
        if when in by_when:
            index = text_of(row.get("index", place))
            by_when[when][(text_of(row.get("step")), index) if when == "step" else index] = row
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
    steps = [{"step": text_of(row.get("step")), "prompt": _clip(row.get("prompt")), **(_side(row) or {})}
             for row in list(by_when["step"].values())[-12:]]  # fmt: skip
    compared = [pair["winner"] for pair in pairs if pair["winner"]]
    tally = {name: compared.count(key) for name, key in (("better", "after"), ("equal", "tie"), ("worse", "before"))}
    return {"pairs": pairs[:MAX_SAMPLES], "hidden": max(0, len(pairs) - MAX_SAMPLES), "tally": tally,
            "compared": len(compared), "steps": steps}  # fmt: skip


def _side(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    known = [name for name in ("score", "reward") if number(row.get(name)) is not None]
    scores = [(name, short(row[name]).replace("-", MINUS)) for name in known]
    return {"completion": _clip(row.get("completion")), "scores": scores}


def _winner(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """Which side is better by score, else by reward: before, after or tie; empty where neither can be compared."""
    for key in ("score", "reward"):
        old, new = number((before or {}).get(key)), number((after or {}).get(key))
        if old is not None and new is not None:
            return "after" if new > old else "before" if new < old else "tie"
    return ""


def _trained(plan: PlanRecord, artifact: dict[str, Any], result: StageResult | None) -> dict[str, Any]:
    trained = dict(as_dict(artifact.get("trained")))
    trainable, total = number(trained.pop("trainable", None)), number(trained.pop("total", None))
    pairs = [("model", plan.model)] if plan.model else []
    if trainable is not None:
        pairs.append(("trained parameters", count(trainable)))
    if total is not None:
        pairs.append(("all parameters", count(total)))
    pairs.extend(flat(trained))
    pairs.extend((f"role {role} from", source) for role, source in plan.roles.items() if source)
    pairs.extend((f"rows of {role}", road) for role, road in (result.rows if result else {}).items())
    share = trainable / total if trainable is not None and total else None
    return {
        "pairs": pairs,
        "share": None if share is None else min(1.0, max(0.0, share)),
        "share_text": "" if share is None else f"{100 * share:.3g}%",
        "rows": [
            f"text: {row.text}\ntokens: {text_of(row.tokens)}\ntrained: {text_of(row.trained)}"
            for row in plan.preview.trained_rows
        ],
    }


def _tables(plan: PlanRecord, result: StageResult | None) -> list[dict[str, Any]]:
    tables = []
    if plan.data is not None:
        tables.append({"title": "Data", "pairs": _data_pairs(plan.data)})
        if built := [*mixture_pairs(plan.data), *transform_pairs(plan.data), *example_pairs(plan.data)]:
            tables.append({"title": "Set building", "pairs": built})
    if batch := _batch_pairs(plan.preview):
        tables.append({"title": "Batch", "pairs": batch})
    if result is None:
        return tables
    if times := [(name, seconds(value)) for name, value in result.time_by_plugin.items() if number(value) is not None]:
        tables.append({"title": "Time by plugin", "pairs": times})
    if measured := [(row.name, f"{decimal(row.before)} → {decimal(row.after)}") for row in result.metrics]:
        tables.append({"title": "Metrics", "pairs": measured})
    if kept := [(row.name.replace("_", " "), change_text(row)) for row in result.retention]:
        tables.append({"title": "What was forgotten", "pairs": kept})
    return tables


def _data_pairs(data: DatasetInfo) -> Pairs:
    """What the records are, without set building."""
    whole = {"quarantined": data.quarantined, "fingerprint": data.fingerprint, "mixing": data.mixing}
    pairs = flat({"train": data.train.to_json(), "heldout": data.heldout.to_json(), **whole})
    return [(key.replace(".", " "), text) for key, text in pairs]


def _batch_pairs(preview: StagePreview) -> Pairs:
    """The batch, where it is known, and the number of steps."""
    batch = flat(vars(preview.batch)) if preview.batch.text else []
    if preview.total_steps:
        batch.append(("total steps", count(preview.total_steps)))
    return [(key.replace("_", " "), text) for key, text in batch]


def _lineage(plan: PlanRecord, artifact: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    owner = plan.owner
    pairs = [("key", str(key))] if (key := artifact.get("key") or plan.key) else []
    if owner != StageOwner():
        pairs.append(("stage from", " ".join(text for text in (owner.distribution, owner.version) if text)))
    parents = [
        {
            "stage": str(parent.get("stage", "?")),
            "key": str(parent.get("key", "")),
            "href": report_of(parent.get("run_dir"), run_dir),
        }
        for parent in as_list(artifact.get("parents"))
        if isinstance(parent, dict)
    ]
    files = [(str(name), str(digest)) for name, digest in as_dict(artifact.get("files")).items()]
    versions = [(str(name), text_of(value)) for name, value in as_dict(artifact.get("versions")).items()]
    return {"pairs": pairs, "parents": parents, "files": files, "versions": versions}


def _checks(verification: dict[str, Any], verified: Any) -> dict[str, Any]:
    rows = [
        {"name": str(row.get("name", "?")), "ok": row.get("ok"), "detail": text_of(row.get("detail") or "")}
        for row in as_list(verification.get("checks"))
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
            lines.append(YAML_KEY.sub(r'\1<span class="k">\2</span>', line))
    return "\n".join(lines)


def _tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65536))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])
