"""A stage of a plan made ready to run: a plugin manager of its own, with the hooks that answer for it. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.console import Console
from core.errors import PluginError
from core.planning.ledger import Ledger
from core.planning.plan import Plan, StagePlan
from core.platform.providers import Providers
from core.platform.registry import STAGE_HOOKS, Registry
from core.settings.schema import RunConfig
from core.training.peers import ALONE, Peers

if TYPE_CHECKING:
    from core.training.run import StageRun


def open_stage(
    plan: Plan,
    stage: StagePlan,
    console: Console,
    cfg: RunConfig,
    config_json: dict[str, Any],
    group: str,
    ledger: Ledger,
    peers: Peers = ALONE,
) -> StageRun:
    """A stage of the plan, ready to run in `stage.run_dir`."""
    from core.training.run import StageRun

    # A fresh manager for each stage: what one stage registered cannot answer for the next.
    registry = Registry.load()
    providers = Providers(stage.seconds)
    _register(registry, stage, cfg, providers)
    return StageRun(stage, plan, registry, console, group, config_json, ledger, providers, peers)


def _register(registry: Registry, stage: StagePlan, cfg: RunConfig, providers: Providers) -> None:
    """Defaults, the chosen stage and the chosen tracker: nothing else answers this run's stage hooks."""
    import core.training.defaults

    registry.manager.register(core.training.defaults, "core.training.defaults")
    spec = registry.stages[(stage.stage, stage.algorithm)].spec
    made = registry.activate(spec)
    providers.watch_hooks(registry.manager, made, registry.owner_of(spec), STAGE_HOOKS)
    own = {impl.name for impl in registry.manager.get_hookcallers(made) or ()}
    needed = {"build_data"} if "fit" in own else {"build_data", "collect_batch", "compute_loss"}
    if missing := sorted(needed - own):
        raise PluginError(
            f"the stage '{spec.name}' does not implement {', '.join(missing)}", str(registry.owner_of(spec)),
            "see the stage hooks in docs/plugins.md",
        )  # fmt: skip
    if cfg.tracker.name in registry.trackers:
        registry.activate(registry.trackers[cfg.tracker.name].spec, cfg.tracker)
