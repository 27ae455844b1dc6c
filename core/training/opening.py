"""A stage of a plan made ready to run: its class registered for the stage hooks, its run, its recorder."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.console import Console
from core.errors import PluginError
from core.models.start import Start
from core.planning.plan import Plan, StagePlan
from core.planning.plugin_code import answers_key_parts
from core.planning.sources import artifact_folder
from core.platform.observers import Observers
from core.platform.providers import Providers, blamed
from core.platform.registry import STAGE_HOOKS, Registry
from core.settings.convert import to_plain
from core.suggest import nearest, question
from core.tokens.codec import ChatCodec
from core.training.log import RunLog
from core.training.parts import Parts
from core.training.peers import ALONE, Peers
from core.training.recorder import Recorder
from core.training.run import StageRun
from core.training.stage import Stage


@dataclass(frozen=True)
class OpenStage:
    """A stage that can be run. Close it, so that the registry can serve the next one."""

    run: StageRun
    recorder: Recorder
    registry: Registry
    registered: tuple[object, ...]
    """What was registered for this stage alone."""

    def close(self) -> None:
        """Give engines, workers and models back, and let no hook answer for this stage any more."""
        self.run.parts.close()
        self.recorder.close()
        if not self.run.peers.first:
            shutil.rmtree(self.run.folder, ignore_errors=True)
        for plugin in self.registered:
            self.registry.manager.unregister(plugin)
        gc.collect()


def open_stage(
    chain: Plan,
    plan: StagePlan,
    registry: Registry,
    console: Console,
    config_json: Mapping[str, Any] | None = None,
    group: str = "",
    peers: Peers = ALONE,
    codec: ChatCodec | None = None,
    name: str = "",
) -> OpenStage:
    """A stage of the chain, ready to run in `plan.run_dir`.

    config_json: the resolved config without secrets. codec: the tokenizer, where it was loaded already.
    name: stands for the stage's own in what is told.
    Raises PluginError for a stage or tracker that cannot be used.
    """
    assert plan.run_dir is not None
    folder = plan.run_dir if peers.first else Path(tempfile.mkdtemp(prefix=f"preftune-process{peers.rank}-"))
    log = RunLog(folder, console, plan.warnings, plan.dataset.quarantined)
    providers = Providers(plan.seconds)
    parent = plan.parents.get("policy")
    weights = parent.run_dir / "artifact" if parent is not None and parent.run_dir is not None else None
    run = StageRun(
        plan=plan,
        chain=chain,
        folder=folder,
        start=Start(plan.cfg, folder, weights, _reward_model_folder(plan), codec),
        log=log,
        parts=Parts(plan, registry, providers, log),
        hooks=registry.manager.hook,
        name=name or plan.stage,
        peers=peers,
        group=group,
        config_json={**(config_json or {}), "stage": to_plain(plan.cfg.stage)},
    )
    registered = _register(run, registry, providers)
    observers = Observers(
        registry.manager if peers.first else None, log.warn, lambda plugin: answers_key_parts(registry, plugin)
    )
    return OpenStage(run, Recorder(run, observers, console), registry, registered)


def _reward_model_folder(plan: StagePlan) -> Path | None:
    """Folder of the learned reward model, or None when the stage has none."""
    parent = plan.parents.get("reward_model")
    if parent is not None and parent.run_dir is not None:
        return parent.run_dir / "artifact"
    source = getattr(plan.cfg.reward, "source", None)
    return artifact_folder(Path(source).expanduser()) if source and plan.reward else None


def _register(run: StageRun, registry: Registry, providers: Providers) -> tuple[object, ...]:
    """The chosen stage and the chosen tracker: nothing else answers this run's stage hooks."""
    spec, owner = run.plan.spec, registry.owner_of(run.plan.spec)
    kind = registry.resolve(spec)
    _check_class(kind, spec.impl, str(owner))
    with blamed(owner, f"'{spec.impl}'"):
        stage = kind(run)
    made: list[object] = [registry.register(stage, f"stage:{spec.name}", spec)]
    # What the class leaves to core is core's to answer for.
    own = [name for name in STAGE_HOOKS if getattr(kind, name) is not getattr(Stage, name)]
    made.append(providers.watch_hooks(registry.manager, owner, own))
    tracker = run.cfg.tracker
    if tracker.name in registry.trackers:
        entry = registry.trackers[tracker.name]
        with blamed(entry.owner, f"'{entry.spec.impl}'"):
            built = registry.resolve(entry.spec)(tracker)
        made.append(registry.register(built, f"tracker:{tracker.name}", entry.spec))
    return tuple(made)


def _check_class(kind: Any, impl: str, owner: str) -> None:
    """Raise PluginError for what is no stage, or has a method that was meant to be a hook."""
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        raise PluginError(f"'{impl}' is no stage", owner, "make it a class that extends core.torch_api.Stage")
    known = {name for name in dir(Stage) if not name.startswith("_")}
    for name in vars(kind):
        near = "" if name.startswith("_") or name in known else nearest(name, STAGE_HOOKS, least=0.85)
        if near:
            raise PluginError(
                f"{kind.__qualname__}.{name} is no stage hook{question([near])}", owner,
                f"rename it to {near}, or begin its name with an underscore if it is your own",
            )  # fmt: skip
