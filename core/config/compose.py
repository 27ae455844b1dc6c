"""Puts typed configs into Hydra's store and preset folders on its search path, then composes. Torch-free.

The store is one for the whole process; `install` takes out what an earlier call put in, so that many runs (tests, the
jobs of a multirun) can follow one another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write

from core.config import presets
from core.errors import ConfigError, PluginError
from core.platform.kinds import KINDS, TYPED_GROUPS
from core.platform.registry import Owner, Registry, structured
from core.settings import peft_methods
from core.settings.schema import RunConfig

ROOT = "preftune"
"""Name of the primary config."""
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


class LazyNode(ConfigNode):
    """A typed option of Hydra's store whose node is built when it is asked for: most options never are."""

    def __init__(self, group: str | None, name: str, owner: Owner, make: Callable[[], Any]) -> None:
        self.make = make
        self.built: DictConfig | None = None
        self.name, self.group, self.package, self.provider = f"{name}.yaml", group, None, f"{_PROVIDER}{owner}"

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyNode:
        """Itself: Hydra copies its whole store for each composition, and each node once more when it loads it."""
        return self

    @property
    def node(self) -> DictConfig:
        """The option as Hydra merges it."""
        return self.built if self.built is not None else self.make()

    @node.setter
    def node(self, value: DictConfig) -> None:
        self.built = value


def _named(config: type, **values: str) -> DictConfig:
    """The dataclass as a node with some values set, without running its checks on values that are still missing."""
    node = structured(config)
    for key, value in values.items():
        node[key] = value
    return node


def _typed_options(registry: Registry) -> list[LazyNode]:
    """Every typed option that the plugins bring."""
    nodes = []
    for (stage, algorithm), entry in registry.stages.items():
        make = partial(_named, entry.spec.config, name=stage, algorithm=algorithm)
        if not algorithm:
            nodes.append(LazyNode("stage", stage, entry.owner, make))
            continue
        option = registry.option_name(stage, algorithm)
        nodes.append(LazyNode("algorithm", option, entry.owner, make))
        if algorithm == registry.default_algorithm(stage):
            choose = {"defaults": [{"/algorithm@_global_.stage": option}]}
            nodes.append(LazyNode("stage", stage, entry.owner, partial(OmegaConf.create, choose)))
    for kind in filter(lambda kind: kind.base, KINDS):
        for group, added in kind.groups.items():
            options = {name: (entry.spec.config, entry.owner) for name, entry in registry.table(kind).items()}
            options |= {added: (kind.base, presets.OWN)} if added else {}
            nodes += [LazyNode(group, name, owner, partial(_named, config, name=name))
                      for name, (config, owner) in options.items()]  # fmt: skip
    return nodes


@lru_cache(maxsize=1)
def _selection() -> dict[str, str]:
    """Default choice of each group, out of conf/selection.yaml."""
    folder = presets.locate(presets.OWN_FOLDER)
    if folder is None or not (folder / "selection.yaml").is_file():
        raise ConfigError("the presets of preftune (package 'conf') are not installed", mend="reinstall preftune")
    loaded = OmegaConf.to_container(OmegaConf.load(folder / "selection.yaml"))
    assert isinstance(loaded, dict)
    return {str(group): str(name) for group, name in loaded.items()}


def _defaults(offered: dict[str, list[str]]) -> list[Any]:
    """The defaults list of the primary config. A default that no plugin brings leaves its part at its base class."""
    entries: list[Any] = ["_self_", {"stage": "???"}]
    for group, name in _selection().items():
        names = offered.get(group, [])
        entries.append({group: name if name in names else "none" if "none" in names else None})
    entries += [{"experiment": None}, {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    return entries


def _root(registry: Registry, defaults: list[Any]) -> Any:
    """The primary config: RunConfig, with Hydra's settings and an `upstream` entry for each stage."""
    node = structured(Root)
    node.defaults, node.hydra = defaults, HYDRA_SETTINGS
    uncopied = {"no_deepcopy_set_nodes": True}  # the entries are new; a copy of each would double the time
    upstream = OmegaConf.create({}, flags=uncopied)
    for stage in registry.stage_names():
        algorithm = registry.default_algorithm(stage)
        with suppress(PluginError):  # told when that stage is chosen
            upstream[stage] = _named(registry.stages[(stage, algorithm)].spec.config, name=stage, algorithm=algorithm)
    with flag_override(node, "no_deepcopy_set_nodes", True):
        node.upstream = upstream
    for group, base in TYPED_GROUPS.items():
        node[group] = structured(base)
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
    files = presets.all_presets(registry, user_folders)
    presets.check_presets(files, presets.registered(registry))
    for node in _typed_options(registry):
        store.repo.setdefault(str(node.group), {})[node.name] = node
    written = {file.name for file in files if file.group == "peft"}
    for method in (*peft_methods.methods(), *registry.peft_methods):
        if method not in written:
            make = partial(OmegaConf.create, {"method": method})
            node = LazyNode("peft", method, presets.OWN, make)
            store.repo.setdefault("peft", {})[node.name] = node
    offered = presets.options(registry, user_folders)
    if registry.stages:
        root = LazyNode(None, ROOT, presets.OWN, OmegaConf.create)
        root.node = _root(registry, _defaults(offered))
        store.repo[root.name] = root
    PluginSearchPath.folders = tuple(
        (owner.plugin, folder) for folder, owner in registry.config_dirs if presets.locate(folder) is not None
    )
    Plugins.instance().register(PluginSearchPath)


def compose(overrides: list[str]) -> DictConfig:
    """Compose one configuration in this process, Hydra's own part included, after `install`.

    `overrides` are in Hydra's language (see core.config.overrides.rewrite). Raises Hydra's exceptions;
    core.config.explain turns them into ConfigErrors.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", job_name=ROOT, version_base="1.3"):
            return hydra_compose(ROOT, overrides, return_hydra_config=True)
    finally:
        GlobalHydra.instance().clear()


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration less Hydra's own part."""
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg
