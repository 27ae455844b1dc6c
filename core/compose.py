"""Puts typed configs into Hydra's store and preset folders on its search path, then composes. Torch-free.

The store is one for the whole process; `install` takes out what an earlier call put in, so that many runs (tests, the
jobs of a multirun) can follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from core import peft_methods, presets
from core.errors import ConfigError
from core.registry import Owner, Registry, structured
from core.schema import RewardConfig, RolloutConfig, RunConfig, TrackerConfig

ROOT = "preftune"
"""Name of the primary config."""
ALGORITHM_GROUP = "algorithm@stage"
"""The algorithm group as Hydra knows it; users type `algorithm=`."""
_PROVIDER = "preftune: "
"""Marks the nodes in Hydra's store that are ours."""

HYDRA_SETTINGS = {
    "run": {"dir": "."},
    "sweep": {"dir": "${runs_dir}/multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "subdir": "."},
    "output_subdir": None,
    "job": {"name": ROOT, "chdir": False},
}
"""A run makes its own folder; Hydra makes none."""


@dataclass
class Root(RunConfig):
    """The primary config as Hydra reads it: RunConfig, the default choice of each group, Hydra's own settings."""

    defaults: list[Any] = field(default_factory=list)
    hydra: Any = None


class PluginSearchPath(SearchPathPlugin):
    """Adds the config folders of the plugins that the latest `install` saw."""

    folders: tuple[tuple[str, str], ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once for each composition."""
        for provider, folder in self.folders:
            search_path.append(provider, folder)


@dataclass(frozen=True)
class Typed:
    """One typed node: an option of a config group."""

    group: str
    name: str
    node: Any
    owner: Owner


def option_name(registry: Registry, stage: str, algorithm: str) -> str:
    """Name of an algorithm in the group `algorithm`: its own, or `<stage>-<own>` where an earlier stage has it too."""
    first = min(name for name, other in registry.stages if other == algorithm)
    return algorithm if first == stage else f"{stage}-{algorithm}"


def _named(config: type, **values: str) -> Any:
    """The dataclass as a node with some values set, without running its checks on values that are still missing."""
    node = structured(config)
    for key, value in values.items():
        node[key] = value
    return node


def typed_nodes(registry: Registry) -> list[Typed]:
    """Every typed option that the plugins and peft bring."""
    nodes = []
    for (stage, algorithm), entry in registry.stages.items():
        node = _named(entry.spec.config, name=stage, algorithm=algorithm)
        group, name = ("algorithm", option_name(registry, stage, algorithm)) if algorithm else ("stage", stage)
        nodes.append(Typed(group, name, node, entry.owner))
        if algorithm and algorithm == registry.default_algorithm(stage):
            default = option_name(registry, stage, algorithm)
            nodes.append(Typed("stage", stage, {"defaults": [{"/algorithm@_global_.stage": default}]}, entry.owner))
    parts: list[tuple[str, dict[str, Any]]] = [
        ("reward", registry.reward_models),
        ("rollout", registry.engines),
        ("tracker", registry.trackers),
    ]
    for group, table in parts:
        for name, entry in table.items():
            nodes.append(Typed(group, name, _named(entry.spec.config, name=name), entry.owner))
    nodes.append(Typed("rollout", "auto", _named(RolloutConfig, name="auto"), presets.OWN))
    nodes.append(Typed("tracker", "none", _named(TrackerConfig, name="none"), presets.OWN))
    return nodes


def registered_names(nodes: list[Typed]) -> dict[str, dict[str, Owner]]:
    """Group -> name -> owner of the typed options."""
    names: dict[str, dict[str, Owner]] = {}
    for node in nodes:
        names.setdefault(node.group, {})[node.name] = node.owner
    return names


def options(registry: Registry, user_folders: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What every config group offers, sorted."""
    found: dict[str, set[str]] = {"experiment": set()}
    for node in typed_nodes(registry):
        found.setdefault(node.group, set()).add(node.name)
    for preset in presets.all_presets(registry, user_folders):
        found.setdefault(preset.group, set()).add(preset.name)
    found.setdefault("peft", set()).update(peft_methods.methods())
    return {group: sorted(names) for group, names in sorted(found.items())}


@lru_cache(maxsize=1)
def _selection() -> dict[str, str]:
    """Default choice of each group, out of conf/selection.yaml."""
    folder = presets.locate(presets.OWN_FOLDER)
    if folder is None or not (folder / "selection.yaml").is_file():
        raise ConfigError("the presets of preftune (package 'conf') are not installed", mend="reinstall preftune")
    loaded = OmegaConf.to_container(OmegaConf.load(folder / "selection.yaml"))
    assert isinstance(loaded, dict)
    return {str(group): str(name) for group, name in loaded.items()}


def _defaults(offered: dict[str, set[str]]) -> list[Any]:
    """The defaults list of the primary config. A default that no plugin brings leaves its part at its base class."""
    entries: list[Any] = ["_self_", {"stage": "???"}]
    for group, name in _selection().items():
        choice: str | None = name
        if name not in offered.get(group, set()):
            choice = "none" if "none" in offered.get(group, set()) else None
        entries.append({group: choice})
    entries += [{"experiment": None}, {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    return entries


def _root(registry: Registry, defaults: list[Any]) -> Any:
    """The primary config: RunConfig, with Hydra's settings and an `upstream` entry for each stage."""
    node = structured(Root)
    node.defaults, node.hydra = defaults, HYDRA_SETTINGS
    upstream = OmegaConf.create({})
    for stage in registry.stage_names():
        algorithm = registry.default_algorithm(stage)
        upstream[stage] = _named(registry.stages[(stage, algorithm)].spec.config, name=stage, algorithm=algorithm)
    node.upstream = upstream
    node.reward = structured(RewardConfig)
    node.rollout = structured(RolloutConfig)
    node.tracker = structured(TrackerConfig)
    return node


def _forget(repo: dict[str, Any]) -> None:
    """Take our nodes out of Hydra's store."""
    for key, value in list(repo.items()):
        if isinstance(value, ConfigNode):
            if (value.provider or "").startswith(_PROVIDER):
                del repo[key]
        elif key != "hydra":
            _forget(value)
            if not value:
                del repo[key]


def install(registry: Registry, user_folders: tuple[str, ...] = ()) -> None:
    """Make Hydra know what `registry` holds, and nothing of an earlier registry.

    Raises PluginError (ConfigError for the user's own folder) for a YAML file with the name of a registered part.
    """
    store = ConfigStore.instance()
    _forget(store.repo)
    nodes = typed_nodes(registry)
    files = presets.all_presets(registry, user_folders)
    presets.check_presets(files, registered_names(nodes))
    offered: dict[str, set[str]] = {}
    for group, name in [(node.group, node.name) for node in nodes] + [(file.group, file.name) for file in files]:
        offered.setdefault(group, set()).add(name)
    for node in nodes:
        store.store(group=node.group, name=node.name, node=node.node, provider=f"{_PROVIDER}{node.owner}")
    for method in peft_methods.methods():
        if method not in offered.get("peft", set()):
            store.store(group="peft", name=method, node={"method": method}, provider=f"{_PROVIDER}peft")
    if registry.stages:
        store.store(name=ROOT, node=_root(registry, _defaults(offered)), provider=f"{_PROVIDER}core")
    PluginSearchPath.folders = tuple(
        (owner.plugin, folder) for folder, owner in registry.config_dirs if presets.locate(folder) is not None
    )
    Plugins.instance().register(PluginSearchPath)


def compose(registry: Registry, overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Compose one configuration in this process; (config, group -> chosen option).

    `overrides` are in Hydra's language (see core.overrides.rewrite). Raises Hydra's exceptions; core.explain turns
    them into ConfigErrors.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    install(registry)
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", job_name=ROOT, version_base="1.3"):
        cfg = hydra_compose(ROOT, overrides, return_hydra_config=True)
    choices = {str(key): value for key, value in cfg.hydra.runtime.choices.items()}
    return without_hydra(cfg), choices


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration less Hydra's own part."""
    OmegaConf.set_struct(cfg, False)
    if "hydra" in cfg:
        del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg
