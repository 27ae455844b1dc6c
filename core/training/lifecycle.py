"""A stage from its first file to its report: build, train, export, verify, tell."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.artifacts.artifact import seal
from core.data.records import write_quarantine
from core.errors import ArtifactError, ConfigError, DataError, TrainingError
from core.files import disk_guard, write_json, write_text
from core.jsonl import METRICS_FILE, SAMPLES_FILE
from core.planning.plan import StagePlan
from core.report import build_report
from core.training.checkpoint import clear_checkpoints
from core.training.evaluate import headline
from core.training.memory import peak_memory_gb, reset_peak
from core.training.run import StageRun

RESULT_VERSION = 1


def carry_out(run: StageRun) -> dict[str, Any]:
    """Build, train, export, verify, report. Returns result.json; nothing in a process that is not the first."""
    began = time.perf_counter()
    reset_peak()
    phase = "build"
    try:
        _check_loop(run)
        _open_folder(run)
        with run.timed("load"), run.peers.first_alone():
            data = run.hook.build_data(run=run)
            _check_train(run, data.train)
            run.total_steps = run.hook.total_steps(run=run, data=data)
            run.models = run.hook.build_models(run=run)
        run.observers.on_run_start(run)
        with run.timed("make data"):
            data = run.hook.make_data(run=run, models=run.models, data=data)
            _check_train(run, data.train)
            run.total_steps = run.hook.total_steps(run=run, data=data)
        if run.peers.first:
            run.ledger.enter(run.key, run.dir)
        run.console.begin(run.plan.title, run.total_steps)
        phase = "fit"
        counts = run.hook.fit(run=run, models=run.models, data=data)
        if counts["steps"] < 1:
            raise TrainingError("the run made no step", run.stage_name, "give more records or steps")
        if not run.peers.first:
            return {}
        phase = "export"
        run.close_engines()
        with run.timed("export and verify"):
            artifact = seal(run)
        result = {
            "version": RESULT_VERSION,
            "stage": run.stage_name,
            "algorithm": run.plan.algorithm,
            **headline(run),
            "retention": run.retention,
            "tokens": counts["tokens"],
            "steps": counts["steps"],
            "seconds": round(counts["seconds"], 2),
            "wall_seconds": round(time.perf_counter() - began, 2),
            "peak_memory_gb": round(peak_memory_gb(), 3),
            "verified": artifact["verification"]["ok"],
            "resumed_at": run.resumed_at,
            "time_by_part": {part: round(value, 2) for part, value in run.seconds.items()},
            "time_by_plugin": run.seconds_by_plugin(),
            "facts": run.facts,
            "reward_errors": sum(scorer.errors for scorer in run.scorers()),
            "run_dir": str(run.dir),
            "data": _data_of(run),
            "warnings": list(run.plan.warnings),
        }
        _add_chain(run, result)
        write_json(run.dir / "plan.json", run.plan_json)
        write_json(run.dir / "result.json", result)
        run.log(f"done: {result['steps']} steps, {result['metric']} {result['before']} → {result['after']}")
        run.observers.on_run_end(run, result)
        with disk_guard(run.dir / "report.html"):
            build_report(run.dir, run.observers.report_sections(run, result))
        if result["verified"]:
            clear_checkpoints(run.dir / "checkpoints")
    except BaseException as error:
        run.observers.on_run_error(run, phase, run.step, error)
        with suppress(ArtifactError):  # the disk may be what failed
            run.log(f"failed in phase '{phase}' at step {run.step}: {type(error).__name__}: {error}")
        raise
    finally:
        run.close()
    if not result["verified"]:
        failed = [check["name"] for check in artifact["verification"]["checks"] if not check["ok"]]
        raise ArtifactError(
            f"the artifact did not pass its verification: {', '.join(failed)}",
            str(run.dir / "artifact.json"),
            "the next stage will not read it; see the details in artifact.json",
        )
    return result


def _check_loop(run: StageRun) -> None:
    """Raise ConfigError where several processes would each run a loop of the stage's own, unaware of the others."""
    own = [
        impl.plugin_name
        for impl in run.hook.fit.get_hookimpls()
        if not impl.wrapper and impl.plugin_name != "core.training.defaults"
    ]
    if run.peers.count > 1 and own:
        raise ConfigError(
            f"{run.plan.title} brings a training loop of its own, which {run.peers.count} processes cannot share",
            run.stage_name,
            "start one process",
        )


def _open_folder(run: StageRun) -> None:
    """What stands in every run folder from the start; what a killed process left half done is removed."""
    with disk_guard(run.dir):
        (run.dir / "checkpoints").mkdir(exist_ok=True)
        for path in _leftovers(run.dir):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (METRICS_FILE, SAMPLES_FILE):
            (run.dir / name).touch()
    run.log(f"{run.plan.title}: {'resuming' if run.plan.state == 'resume' else 'running'} in {run.dir}")
    for warning in run.plan.warnings:
        run.log(f"warning: {warning}")
    write_json(run.dir / "plan.json", run.plan_json)
    write_json(run.dir / "config.json", {"version": 1, **run.config_json})
    _write_yaml(run.dir / "config.yaml", run.config_json)


def _check_train(run: StageRun, train: Sequence[Any]) -> None:
    """Raise DataError where no example is left, or too many were put into quarantine."""
    with disk_guard(run.dir / "quarantine.jsonl"):
        write_quarantine([*run.dropped, *run.plan.dataset.set_aside], run.dir / "quarantine.jsonl")
    if not train:
        example = f"; the first: {run.dropped[0]}" if run.dropped else ""
        raise DataError(f"no example is left to train on{example}", run.stage_name, f"see {run.dir}/quarantine.jsonl")
    kept = len(train)
    share = len(run.dropped) / max(len(run.dropped) + kept, 1)
    run.plan.dataset.info["quarantined"] = len(run.dropped)
    if not run.dropped:
        return
    run.warn(f"{len(run.dropped)} of {len(run.dropped) + kept} rows are in quarantine ({run.dir}/quarantine.jsonl)")
    write_json(run.dir / "plan.json", run.plan_json)
    if share > run.cfg.data.max_bad_frac:
        first = run.dropped[0]
        raise DataError(
            f"{share:.0%} of the rows cannot be used, more than data.max_bad_frac={run.cfg.data.max_bad_frac}; "
            f"the first: {first}",
            str(run.dir / "quarantine.jsonl"),
            "mend the rows, or raise data.max_bad_frac",
        )


def _data_of(run: StageRun) -> dict[str, Any]:
    """What the stage was trained on, in short; plan.json has it in full."""
    info = run.plan.dataset.info
    return {
        "records": info["train"]["records"],
        "heldout": info["heldout"]["records"],
        "fingerprint": info["fingerprint"],
        "sources": {name: source["records"] for name, source in info.get("mixture", {}).items()},
        "transforms": [
            {key: step[key] for key in ("name", "version", "kept", "dropped", "added")}
            for step in info.get("transforms", [])
        ],
    }


def _add_chain(run: StageRun, result: dict[str, Any]) -> None:
    """What the stages of the chain did, the start of the whole chain first."""
    rows = []
    for stage in run.whole.stages:
        row = result if stage is run.plan else read_result(stage)
        if row is not None:
            rows.append(
                {
                    **{key: row.get(key) for key in ("stage", "metric", "before", "after", "seconds", "tokens")},
                    "reused": stage.state == "reuse",
                    "run_dir": str(stage.run_dir),
                }
            )
        if stage is run.plan:
            break
    same = [row for row in rows if row["metric"] == result["metric"]]
    result["start"] = same[0]["before"] if same else None
    result["pipeline"] = rows


def read_result(stage: StagePlan) -> dict[str, Any] | None:
    """result.json of a stage that is done; None where there is none."""
    path = stage.run_dir / "result.json" if stage.run_dir else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def complete(run_dir: Path) -> None:
    """Do what a process killed right after it had written result.json left undone: the report, and the checkpoints."""
    with disk_guard(run_dir):
        if not (run_dir / "report.html").is_file():
            build_report(run_dir)
        clear_checkpoints(run_dir / "checkpoints")


def _leftovers(run_dir: Path) -> list[Path]:
    """Drafts, and the record of an artifact that will be made anew."""
    drafts = [path for pattern in (".*.part", ".probe.safetensors", "*.draft") for path in run_dir.glob(pattern)]
    made = [run_dir / name for name in ("artifact.json", "result.json", "report.html", "report.md")]
    return [path for path in (*drafts, *made) if path.exists()]


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    import yaml

    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
