"""The stages behind one command: plan them, show the plan, run what is not there yet, show the summary."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core.commands.preview.estimate import add_previews
from core.console import Console
from core.errors import ConfigError
from core.planning.ledger import Ledger, lock_folder
from core.planning.make import make_plan
from core.planning.plan import Plan, StagePlan
from core.planning.sources import resolve_source
from core.platform.registry import Registry
from core.quiet import hush, set_environment
from core.results import StageResult
from core.settings.schema import Device, RunConfig
from core.training.peers import Peers, join
from core.training.stage_process import run_apart


def run_chain(cfg: RunConfig, registry: Registry, config_json: dict[str, Any]) -> int:
    """Run the chain of stages that the config asks for. Returns the exit code.

    config_json: the resolved config without secrets, for the run folder and the tracker.
    Where several stages run, each has a process of its own, so that one does not pay for the memory of another; but not
    under a launcher, whose processes have met already.
    """
    set_environment()
    peers = join(cfg.runtime.device is Device.cpu)
    console = Console(quiet=not peers.first)
    with peers.first_alone():
        plan = make_plan(cfg, registry)
    if peers.count > 1:
        _check_peers(plan, registry, peers)
    if peers.first:
        add_previews(plan, registry)
        console.plan(plan)
    if cfg.dry_run:
        return 0
    check_device(cfg)
    if any(stage.state != "reuse" for stage in plan.stages):
        with peers.first_alone():
            resolve_source(cfg.model)  # a source without weights is told before a run folder is made
    ledger = Ledger(Path(cfg.runs_dir))
    group = peers.broadcast(cfg.group or time.strftime("%Y%m%d-%H%M%S"))
    apart = peers.count == 1 and sum(one.state != "reuse" for one in plan.stages) > 1
    results: list[StageResult | None] = []
    for number, stage in enumerate(plan.stages, 1):
        with ExitStack() as held:
            if peers.first:
                _settle(stage, ledger, cfg, held)
            stage.state, stage.run_dir = peers.broadcast((stage.state, stage.run_dir))
            assert stage.run_dir is not None
            console.line(f"stage {number} of {len(plan.stages)}: {stage.title}: {_fate(stage)}")
            if stage.state == "reuse":
                if peers.first:
                    from core.training.run_stage import complete

                    complete(stage.run_dir)
                results.append(StageResult.read(stage.run_dir))
            elif apart:
                run_apart(_run_one, plan, number - 1, config_json, group)
                results.append(StageResult.read(stage.run_dir))
            else:
                load_torch(cfg)
                from core.training.opening import open_stage
                from core.training.run_stage import run_stage

                opened = open_stage(plan, stage, registry, console, config_json, group, peers)
                results.append(run_stage(opened, ledger))
    if peers.first:
        console.summary(plan, results)
    return 0


def _fate(stage: StagePlan) -> str:
    """What is done with a stage."""
    if stage.state == "reuse":
        return f"reused from {stage.run_dir} (reuse=false runs it anew)"
    return f"{'resuming' if stage.state == 'resume' else 'running'} in {stage.run_dir}"


def _settle(stage: StagePlan, ledger: Ledger, cfg: RunConfig, held: ExitStack) -> None:
    """Decide what is done with a stage and in which folder; its locks are `held` until it is done."""
    if cfg.reuse and stage.state != "reuse":
        held.enter_context(ledger.lock(stage.key))
        # Another process may have done the work since the plan was made.
        stage.take(ledger.lookup(stage.key))
    if stage.state == "reuse":
        return
    if stage.state == "run":
        stage.run_dir = ledger.open_folder(stage.stage)
    assert stage.run_dir is not None
    held.enter_context(lock_folder(stage.run_dir))


def _run_one(plan: Plan, place: int, config_json: dict[str, Any], group: str) -> None:
    """Run the stage at `place` of the plan, in a process of its own."""
    stage = plan.stages[place]
    load_torch(stage.cfg)
    from core.training.opening import open_stage
    from core.training.run_stage import run_stage

    opened = open_stage(plan, stage, Registry.load(), Console(), config_json, group)
    run_stage(opened, Ledger(Path(stage.cfg.runs_dir)))


def _check_peers(plan: Plan, registry: Registry, peers: Peers) -> None:
    """Raise ConfigError for several processes where a stage samples, or brings a loop of its own: each would run one,
    unaware of the others."""
    from core.training.stage import Stage

    for stage in plan.stages:
        kind = registry.resolve(stage.spec)
        if getattr(kind, "fit", Stage.fit) is not Stage.fit:
            raise ConfigError(
                f"{stage.title} brings a training loop of its own, which {peers.count} processes cannot share",
                stage.stage,
                "start one process",
            )
    sampling = [stage.title for stage in plan.stages if stage.spec.samples]
    if sampling:
        raise ConfigError(
            f"{', '.join(sampling)} samples completions, which {peers.count} processes cannot share yet",
            "WORLD_SIZE",
            "start one process; stages that train on records alone may have several",
        )


def load_torch(cfg: RunConfig) -> None:
    """Import torch, quiet and with the threads that the config asks for."""
    hush()
    import torch

    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)


def check_device(cfg: RunConfig) -> None:
    """Raise ConfigError for a device that is not there."""
    if cfg.runtime.device is Device.cuda:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("runtime.device=cuda, but torch sees no GPU", "runtime.device", "set runtime.device=auto")
