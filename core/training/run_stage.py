"""A stage from its first file to its report: build, train, export, verify, tell."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import signals
from core.artifacts.artifact import seal
from core.data.records import write_quarantine
from core.errors import ArtifactError, DataError, TrainingError
from core.files import disk_guard, write_json, write_text
from core.jsonl import METRICS_FILE, SAMPLES_FILE
from core.models.road import PACKED
from core.models.roles import Models
from core.planning.ledger import Ledger
from core.platform.spec_checks import check_returned
from core.proof import write_record
from core.report import build_report
from core.results import StageResult
from core.training.checkpoint import clear_checkpoints
from core.training.evaluate import headline
from core.training.loop import Fitted
from core.training.memory import peak_memory_gb, reset_peak
from core.training.opening import OpenStage
from core.training.recorder import Recorder
from core.training.run import StageRun, heldout_prompts


def run_stage(opened: OpenStage, ledger: Ledger) -> StageResult | None:
    """Build, train, export, verify, report, and close the stage. None in a process that is not the first."""
    run, recorder, hooks = opened.run, opened.recorder, opened.run.hooks
    began = time.perf_counter()
    reset_peak()
    phase = "build"
    try:
        _open_folder(run)
        with run.log.timed("load"), run.peers.first_alone():
            for note in run.codec.notes:
                run.log.warn(note)
            data = hooks.build_data(run=run)
            check_returned(data, "build_data", run.plan.spec.impl)
            _check_train(run, data.train)
            models = hooks.build_models(run=run)
        rows = _tell_rows(run, models)
        run.parts.hold(models, 0)
        recorder.started()
        with run.log.timed("make data"):
            data = hooks.make_data(run=run, models=models, data=data)
            check_returned(data, "make_data", run.plan.spec.impl)
            _check_train(run, data.train)
            recorder.made(getattr(data, "facts", {}), resumed=run.plan.state == "resume")
        if run.peers.first:
            ledger.enter(run.key, run.folder)
        recorder.begin(run.plan.title, hooks.total_steps(run=run, data=data))
        phase = "fit"
        fitted = hooks.fit(run=run, models=models, data=data, recorder=recorder)
        _check_fitted(run, recorder, fitted)
        hooks.finish(run=run, models=models, data=data)
        if not run.peers.first:
            return None
        phase = "export"
        run.parts.close_engines()
        with run.log.timed("export and verify"):
            held = heldout_prompts(run, models.codec)
            artifact = seal(
                run.plan, models, run.folder, lambda folder: hooks.export(run=run, models=models, folder=folder),
                held[0][1] if held else None,
            )  # fmt: skip
        result = replace(_result(run, recorder, fitted, artifact, began), rows=rows)
        _tell(run, recorder, result)
    except BaseException as error:
        _tell_end(run, recorder, phase, error)
        raise
    finally:
        opened.close()
    if not result.verified:
        failed = [check["name"] for check in artifact["verification"]["checks"] if not check["ok"]]
        raise ArtifactError(
            f"the artifact did not pass its verification: {', '.join(failed)}",
            str(run.folder / "artifact.json"),
            "the next stage will not read it; see the details in artifact.json",
        )
    return result


def _check_fitted(run: StageRun, recorder: Recorder, fitted: Fitted) -> None:
    """Raise what a loop of the stage's own may have swallowed, and TrainingError for one that made no step."""
    signals.check()
    if run.plan.state == "resume" and not recorder.taken_up:
        run.log.warn("the stage's own fit does not resume, so it started anew: see Checkpoints in docs/plugins.md")
    if fitted.steps < 1:
        raise TrainingError("the run made no step", run.name, "give more records or steps")


def _tell_end(run: StageRun, recorder: Recorder, phase: str, error: BaseException) -> None:
    """Tell log and observers of a run that ends with `error`; of an interrupted one also what the same command does."""
    if not isinstance(error, KeyboardInterrupt):
        recorder.failed(phase, error)
        with suppress(ArtifactError):  # the disk may be what failed
            run.log.write(f"failed in phase '{phase}' at step {recorder.done}: {type(error).__name__}: {error}")
        return
    found = max((run.folder / "checkpoints").glob("step-*"), default=None)
    if found is not None:
        then = f"resumes from {found.name}"
    elif phase == "build":
        then = "begins again, with the examples that were made so far"
    else:
        then = "begins again, for there is no checkpoint"
    with signals.held(), suppress(ArtifactError):  # first of all: who sent the signal may not wait for observers
        run.log.say(f"interrupted by {error} in phase '{phase}' at step {recorder.done}: the same command {then}")
    recorder.failed(phase, error)


def _open_folder(run: StageRun) -> None:
    """What stands in every run folder from the start; what a killed process left half done is removed."""
    with disk_guard(run.folder):
        (run.folder / "checkpoints").mkdir(exist_ok=True)
        for path in _leftovers(run.folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (METRICS_FILE, SAMPLES_FILE):
            (run.folder / name).touch()
    run.log.write(f"{run.plan.title}: {'resuming' if run.plan.state == 'resume' else 'running'} in {run.folder}")
    for warning in run.log.warnings:
        run.log.write(f"warning: {warning}")
    write_json(run.folder / "plan.json", run.plan_json)
    write_json(run.folder / "config.json", {"version": 1, **run.config_json})
    _write_yaml(run.folder / "config.yaml", dict(run.config_json))


def _tell_rows(run: StageRun, models: Models) -> dict[str, str]:
    """Say on which road the sequences go through each model; returns it by role."""
    rows = {role: model.road.title for role, model in models.by_role().items()}
    for road in dict.fromkeys(rows.values()):
        line = f"{', '.join(role for role in rows if rows[role] == road)}: {road}"
        run.log.write(line) if road == PACKED else run.log.say(line)
    return rows


def _check_train(run: StageRun, train: Sequence[Any]) -> None:
    """Raise DataError where no example is left, or too many were put into quarantine."""
    dropped = run.log.dropped
    with disk_guard(run.folder / "quarantine.jsonl"):
        write_quarantine([*dropped, *run.plan.dataset.set_aside], run.folder / "quarantine.jsonl")
    if not train:
        example = f"; the first: {dropped[0]}" if dropped else ""
        raise DataError(f"no example is left to train on{example}", run.name, f"see {run.folder}/quarantine.jsonl")
    kept = len(train)
    share = len(dropped) / max(len(dropped) + kept, 1)
    if not dropped:
        return
    run.log.warn(f"{len(dropped)} of {len(dropped) + kept} rows are in quarantine ({run.folder}/quarantine.jsonl)")
    write_json(run.folder / "plan.json", run.plan_json)
    if share > run.cfg.data.max_bad_frac:
        raise DataError(
            f"{share:.0%} of the rows cannot be used, more than data.max_bad_frac={run.cfg.data.max_bad_frac}; "
            f"the first: {dropped[0]}",
            str(run.folder / "quarantine.jsonl"),
            "mend the rows, or raise data.max_bad_frac",
        )


def _result(run: StageRun, recorder: Recorder, fitted: Fitted, artifact: dict[str, Any], began: float) -> StageResult:
    """What the stage has to tell."""
    info = run.plan.dataset.info
    known = headline(recorder.first, recorder.last, fitted.measured)
    result = StageResult(
        stage=run.name,
        algorithm=run.plan.algorithm,
        **known,
        retention=fitted.retention,
        tokens=fitted.tokens,
        steps=fitted.steps,
        seconds=round(fitted.seconds, 2),
        wall_seconds=round(time.perf_counter() - began, 2),
        peak_memory_gb=round(peak_memory_gb(), 3),
        verified=artifact["verification"]["ok"],
        resumed_at=fitted.resumed_at,
        stopped=fitted.stopped,
        time_by_part={part: round(value, 2) for part, value in run.log.seconds.items()},
        time_by_plugin=recorder.seconds_by_plugin(),
        facts=recorder.facts,
        reward_errors=run.parts.reward_errors(),
        run_dir=str(run.folder),
        data=info.short(),
        warnings=list(run.log.warnings),
    )
    return _with_chain(run, result)


def _with_chain(run: StageRun, result: StageResult) -> StageResult:
    """The result with what the stages of the chain did, the start of the whole chain first."""
    rows = []
    for stage in run.chain.stages:
        known = result if stage is run.plan else StageResult.read(stage.run_dir) if stage.run_dir else None
        if known is not None:
            rows.append(known.as_step(reused=stage.state == "reuse", run_dir=str(stage.run_dir)))
        if stage is run.plan:
            break
    same = [row for row in rows if row.metric == result.metric]
    return replace(result, start=same[0].before if same else None, pipeline=rows)


def _tell(run: StageRun, recorder: Recorder, result: StageResult) -> None:
    """Write plan.json, result.json and the report; checkpoints of a verified run are removed."""
    write_json(run.folder / "plan.json", run.plan_json)
    write_record(run.folder / "result.json", result.to_json())
    run.log.write(f"done: {result.steps} steps, {result.metric} {result.before} → {result.after}")
    sections = recorder.ended(result)
    with disk_guard(run.folder / "report.html"):
        build_report(run.folder, sections)
    if result.verified:
        clear_checkpoints(run.folder / "checkpoints")


def complete(run_dir: Path) -> None:
    """Do what a process killed right after it had written result.json left undone: the report, and the checkpoints."""
    with disk_guard(run_dir):
        if not (run_dir / "report.html").is_file():
            build_report(run_dir)
        clear_checkpoints(run_dir / "checkpoints")


def _leftovers(run_dir: Path) -> list[Path]:
    """Drafts, and what will be made anew: the record of an artifact, the plain copy of an adapter."""
    drafts = [path for pattern in (".*.part", ".probe.safetensors", "*.draft") for path in run_dir.glob(pattern)]
    made = [run_dir / name for name in ("artifact.json", "result.json", "report.html", "report.md", "engine")]
    return [path for path in (*drafts, *made) if path.exists()]


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    import yaml

    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
