"""preftune's side: a stage as `python -m core` would run it, its step loop driven one step at a time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate
from benchmarks.tasks import TASKS, Task

PROMPT_CHARS = (30, 130)
"""Prompts of rollouts are taken within these lengths: 40 to 60 tokens with the chat template of SmolLM2."""


def open_task(job: dict[str, Any], more: list[str]) -> tuple[Any, Any]:
    """(OpenStage, StageData) of the task."""
    from core.config.typed import typed_config
    from core.console import Console
    from core.planning.make import make_plan
    from core.quiet import hush
    from core.training.opening import open_stage

    hush()
    task = TASKS[job["task"]]
    overrides = [*task.overrides, *more, *model_overrides(job["model"]), f"data.path={job['rows']}", "data=none"]
    cfg, registry, config_json = typed_config([*overrides, f"runs_dir={job['folder']}"])
    chain = make_plan(cfg, registry)
    chain.target.run_dir = Path(job["folder"])
    chain.target.run_dir.mkdir(parents=True, exist_ok=True)
    opened = open_stage(chain, chain.target, registry, Console(), config_json, "benchmark")
    data = opened.run.hooks.build_data(run=opened.run)
    if task.new_tokens:
        low, high = PROMPT_CHARS
        fitting = [item for item in data.train if low <= len(item.record.prompt[-1].content) <= high]
        data.train = fitting if len(fitting) >= task.batch else data.train
    return opened, data


def model_overrides(model: str | None) -> list[str]:
    """The model as overrides: the embedded one where none is named."""
    if model is None:
        return []
    return [f"model.source={model}"] if model.startswith("package:") else ["model=custom", f"model.source={model}"]


def write_steps(job: dict[str, Any], gate: Gate) -> None:
    """Write the rows of each step as token ids, in the order in which preftune takes them, for everybody to use."""
    from core.training.order import step_items

    task = TASKS[job["task"]]
    opened, data = open_task(job, ["algorithm=rloo"] if task.name == "rloo" else [])
    run, steps = opened.run, []
    for step in range(job["steps"]):
        items = step_items(data.train, step, task.batch, run.seed_for("order"))
        steps.append([_ids(item) for item in items])
    Path(job["steps_file"]).write_text(json.dumps(steps))
    gate.say(folder=str(run.start.folder), examples=len(data.train))


def _ids(item: Any) -> dict[str, list[int]]:
    if hasattr(item, "chosen"):
        return {"prompt": item.prompt, "chosen": item.chosen, "rejected": item.rejected}
    if hasattr(item, "weights"):
        first = item.tokens - item.trained  # the stage trains on the last turn, which ends the row
        return {"prompt": list(item.ids[:first]), "completion": list(item.ids[first:])}
    return {"prompt": item.ids}


def plain_tokens(task: Task, rows: list[dict[str, list[int]]], completion_tokens: int = 0) -> int:
    """Real tokens of a step, counted alike for everybody: each sequence with its prompt, no padding."""
    if task.name == "rloo":
        return task.group * sum(len(row["prompt"]) for row in rows) + completion_tokens
    if task.name == "dpo":
        return sum(2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in rows)
    return sum(len(row["prompt"]) + len(row["completion"]) for row in rows)


def race(job: dict[str, Any], gate: Gate) -> None:
    """Build everything a run builds before its first step, then make a step at each turn."""
    import torch

    from core.training.loop import StepLoop

    gate.imported()
    task = TASKS[job["task"]]
    opened, data = open_task(job, [*job["options"]["overrides"], f"stage.max_steps={job['steps']}"])
    run = opened.run
    models = run.hooks.build_models(run=run)
    run.parts.hold(models, 0)
    loop = StepLoop(run, models, data, opened.recorder)
    if task.new_tokens:
        _run_to_full_length(run)
    steps = json.loads(Path(job["steps_file"]).read_text())
    gate.ready(torch.get_num_threads())
    for rows in steps:
        if not gate.wait():
            break
        metrics = loop.one_step()
        clock = gate.stop_clock()
        sampled = round(metrics.get("completion_tokens", 0) * task.batch * task.group)
        gate.done(clock, plain_tokens(task, rows, sampled), metrics["loss"], completion_tokens=sampled)
    opened.close()


def _run_to_full_length(run: Any) -> None:
    """Let no token end a completion, so that every contender samples and trains on equally many tokens."""
    engine = run.parts.engine()
    generate = engine.generate
    engine.generate = lambda prompts, sampling: generate(prompts, dataclasses.replace(sampling, stop_token_ids=()))
