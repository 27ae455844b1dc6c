"""The job behind one command: plan, show the plan, run what is not there yet, show the summary."""

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
from core.settings.schema import Device, RunConfig
from core.training.opening import open_stage
from core.training.peers import ALONE, Peers, join
from core.training.stage_process import run_apart


def execute(cfg: RunConfig, registry: Registry, config_json: dict[str, Any]) -> int:
    """Run the chain of stages that the config asks for. Returns the exit code.

    config_json: the resolved config without secrets, for the run folder and the tracker.
    """
    set_environment()
    peers = join(cfg.runtime.device is Device.cpu)
    console = Console(quiet=not peers.first)
    with peers.first_alone():
        plan = make_plan(cfg, registry)
    if peers.first:
        add_previews(plan)
        console.plan(plan)
    if cfg.dry_run:
        return 0
    _check_machine(cfg, plan, peers)
    if any(stage.state != "reuse" for stage in plan.stages):
        with peers.first_alone():
            resolve_source(cfg.model)  # a source without weights is told before a run folder is made
    ledger = Ledger(Path(cfg.runs_dir))
    group = peers.told(cfg.group or time.strftime("%Y%m%d-%H%M%S"))
    results = [
        _stage(plan, number, console, ledger, cfg, config_json, group, peers)
        for number in range(1, len(plan.stages) + 1)
    ]
    if peers.first:
        console.summary(plan, results)
    return 0


def _stage(
    plan: Plan,
    number: int,
    console: Console,
    ledger: Ledger,
    cfg: RunConfig,
    config_json: dict[str, Any],
    group: str,
    peers: Peers,
) -> dict[str, Any] | None:
    """Reuse, resume or run one stage; returns its result.json.

    Where several stages run, each has a process of its own, so that one does not pay for the memory of another; but
    not under a launcher, whose processes have met already.
    """
    from core.training.lifecycle import complete, read_result

    stage = plan.stages[number - 1]
    head = f"stage {number} of {len(plan.stages)}: {stage.title}"
    with ExitStack() as held:
        if peers.first:
            _settle(stage, ledger, cfg, held)
        stage.state, stage.run_dir = peers.told((stage.state, stage.run_dir))
        assert stage.run_dir is not None
        if stage.state == "reuse":
            console.line(f"{head}: reused from {stage.run_dir} (reuse=false runs it anew)")
            if peers.first:
                complete(stage.run_dir)
            return read_result(stage)
        console.line(f"{head}: {'resuming in' if stage.state == 'resume' else 'running in'} {stage.run_dir}")
        if peers.count == 1 and sum(one.state != "reuse" for one in plan.stages) > 1:
            run_apart(run_stage, plan, number, cfg, config_json, group)
            return read_result(stage)
        return run_stage(plan, number, cfg, config_json, group, peers)


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


def run_stage(
    plan: Plan, number: int, cfg: RunConfig, config_json: dict[str, Any], group: str, peers: Peers = ALONE
) -> dict[str, Any]:
    """Run stage `number` (from 1) of the plan in this process; returns its result.json."""
    from core.training.lifecycle import carry_out

    load_torch(cfg)
    ledger = Ledger(Path(cfg.runs_dir))
    console = Console(quiet=not peers.first)
    return carry_out(open_stage(plan, plan.stages[number - 1], console, cfg, config_json, group, ledger, peers))


def _check_machine(cfg: RunConfig, plan: Plan, peers: Peers) -> None:
    """Raise ConfigError for a device that is not there, and for several processes where a stage samples."""
    check_device(cfg)
    sampling = [stage.title for stage in plan.stages if stage.spec.samples]
    if peers.count > 1 and sampling:
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
