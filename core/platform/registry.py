"""Finds, isolates, names and switches plugins; makes one pluggy manager for each run. Torch-free.

A broken plugin costs one warning line and never the run; two owners of one name end it, because nobody could say which
of them the user means.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from functools import cache, partial
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

from core.errors import ConfigError, PluginError
from core.platform.hook_checks import check_hooks, place_of
from core.platform.hookspecs import (
    API_ATTRIBUTE,
    API_VERSION,
    OLDEST_API,
    PROJECT,
    Deprecated,
    ObserverHooks,
    RegistrationHooks,
    StageHooks,
)
from core.platform.installing import importable, install_hint
from core.platform.kinds import KINDS, Kind
from core.platform.owners import Owner, PluginRecord, Registered
from core.platform.providers import raised_at
from core.platform.spec_checks import LoadedSpec, Spec, specs_of, structured
from core.platform.specs import (
    CommandSpec,
    DataSourceSpec,
    DialectSpec,
    EngineSpec,
    MetricSpec,
    OptimizerSpec,
    PeftMethodSpec,
    ReaderSpec,
    RewardSpec,
    StageSpec,
    TextSetSpec,
    TrackerSpec,
    TransformSpec,
)
from core.platform.switches import DISABLE_VARIABLE, Switches
from core.secrets import without_secrets

STAGE_HOOKS = tuple(name for name in vars(StageHooks) if not name.startswith("_"))
HEAVY = "torch"
"""The module that no entry module may drag in."""


class Registry:
    """Everything that the plugins of this process bring to one run. Each row of KINDS has a table; those that core
    reads by name are named here for their types."""

    stages: dict[tuple[str, str], Registered[StageSpec]]
    """By (stage, algorithm); the algorithm is empty for a stage without variants."""
    reward_models: dict[str, Registered[RewardSpec]]
    engines: dict[str, Registered[EngineSpec]]
    optimizers: dict[str, Registered[OptimizerSpec]]
    peft_methods: dict[str, Registered[PeftMethodSpec]]
    metrics: dict[str, Registered[MetricSpec]]
    trackers: dict[str, Registered[TrackerSpec]]
    data_sources: dict[str, Registered[DataSourceSpec]]
    transforms: dict[str, Registered[TransformSpec]]
    readers: dict[str, Registered[ReaderSpec]]
    """By suffix."""
    text_sets: dict[str, Registered[TextSetSpec]]
    dialects: dict[str, Registered[DialectSpec]]
    commands: dict[str, Registered[CommandSpec]]

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.manager = manager
        self.plugins: list[PluginRecord] = []
        self.config_dirs: list[tuple[str, Owner]] = []
        self.warnings: list[str] = []
        """One line for each broken plugin, to be shown to the user."""
        self.clashes: list[PluginError] = []
        """Names with two owners; `load` raises the first unless told otherwise."""
        for kind in KINDS:
            setattr(self, kind.table, {})

    @classmethod
    def load(cls, strict: bool = True) -> Registry:
        """A fresh manager with every plugin that can be loaded, in the order of their names.

        strict: raise PluginError where two plugins own one name; False keeps the first and lists it in `clashes`.
        """
        manager = pluggy.PluginManager(PROJECT)
        for specs in (RegistrationHooks, StageHooks, ObserverHooks):
            manager.add_hookspecs(specs)
        registry = cls(manager)
        switches = Switches.read()
        found = sorted(metadata.entry_points(group=PROJECT), key=lambda point: (point.name, point.value))
        name_and_version = cache(_name_and_version)  # each question parses a METADATA file
        for point in found:
            registry._add(Owner(point.name, *name_and_version(point.dist)), point.value, switches)
        for module in switches.modules:
            registry._add(Owner(module, "", ""), module, switches)
        owners = [record.owner for record in registry.plugins]
        names = {owner.plugin for owner in owners}
        registry.warnings += switches.unknown(names, {owner.distribution for owner in owners})
        registry._check_variants()
        if strict and registry.clashes:
            raise registry.clashes[0]
        return registry

    def _add(self, owner: Owner, module: str, switches: Switches) -> None:
        record = PluginRecord(owner, module)
        self.plugins.append(record)
        if reason := switches.why_not(owner.plugin, owner.distribution):
            self.manager.set_blocked(owner.plugin)
            record.state, record.reason = "blocked", reason
            return
        if self.manager.has_plugin(owner.plugin):
            first = next(other.owner for other in self.plugins if other.owner.plugin == owner.plugin)
            self._clash(f"plugin {owner.plugin}", first, owner)
            record.state, record.reason = "broken", "its name is taken"
            return
        before = HEAVY in sys.modules
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", DeprecationWarning)
                collected = self._load(record)
        except Exception as error:
            if self.manager.has_plugin(owner.plugin):
                self.manager.unregister(name=owner.plugin)
            reason = " ".join(without_secrets(str(error)).split())[:600]
            place = "" if isinstance(error, PluginError) else raised_at(error)
            record.state, record.reason = (
                "broken",
                f"{type(error).__name__}: {reason}" + (f" ({place})" if place else ""),
            )
            self.warnings.append(f"{owner} ({module}) is left out: {record.reason}")
            return
        finally:
            record.imports_torch = not before and HEAVY in sys.modules
        if record.imports_torch:
            self.warnings.append(f"{owner} ({module}) imports {HEAVY} in its entry module and slows every start down")
        self.warnings += [f"{owner}: {item.message}" for item in told if isinstance(item.message, Deprecated)]
        if collected is not None:
            self._take(collected, record)

    def _load(self, record: PluginRecord) -> dict[str, list[Any]] | None:
        """Import and register one plugin; what its registration hooks return, None where its module is known already.

        Raises whatever the plugin raises, and PluginError for what preftune cannot use.
        """
        owner = record.owner
        plugin = _import(record.module)
        if self.manager.is_registered(plugin):
            record.state = "overridden"
            record.reason = f"the same module is already loaded as '{self.manager.get_name(plugin)}'"
            return None
        record.api = API_VERSION if owner.distribution == PROJECT else getattr(plugin, API_ATTRIBUTE, None)
        if record.api is not None:
            check_api(record.api)
        check_hooks(self.manager, plugin)
        self.manager.register(plugin, owner.plugin)
        record.hooks = sorted(caller.name for caller in self.manager.get_hookcallers(plugin) or [])
        self._refuse_stage_hooks(plugin)
        return self._collect(plugin, record.hooks)

    def _refuse_stage_hooks(self, plugin: object) -> None:
        """Stage hooks belong to the chosen stage's own class; an entry module may only wrap them."""
        for name in STAGE_HOOKS:
            for impl in getattr(self.manager.hook, name).get_hookimpls():
                if impl.plugin is plugin and not (impl.wrapper or impl.hookwrapper):
                    raise PluginError(
                        f"its entry module answers the stage hook '{name}'; put it into the class named by "
                        "StageSpec.impl, or make it a wrapper with @hookimpl(wrapper=True)"
                    )

    def _collect(self, plugin: object, hooks: list[str]) -> dict[str, list[Any]]:
        """What the registration hooks of this one plugin return, checked."""
        asked = {kind.hook: kind.specs_of for kind in KINDS} | {"register_config_dirs": partial(specs_of, kind=str)}
        collected: dict[str, list[Any]] = {name: [] for name in asked}
        for name in filter(hooks.__contains__, asked):
            for impl in getattr(self.manager.hook, name).get_hookimpls():
                if impl.plugin is plugin:
                    try:
                        collected[name] += asked[name](impl.function())
                    except PluginError as error:
                        where = error.where or place_of(impl.function)
                        raise PluginError(f"{name}: {error.what}", where, error.mend) from error
        return collected

    def _take(self, collected: dict[str, list[Any]], record: PluginRecord) -> None:
        for kind in KINDS:
            for spec in collected[kind.hook]:
                if first := kind.taken(spec.name):
                    self._clash(f"{kind.label} {spec.name}", first, record.owner)
                    continue
                for key, name in kind.keys(spec):
                    self._put(f"{kind.label} {name}", self.table(kind), key, spec, record)
        for folder in collected["register_config_dirs"]:
            self.config_dirs.append((folder, record.owner))
            record.adds.append(f"config {folder}")

    def _put(self, label: str, table: dict[Any, Any], key: Any, spec: Spec, record: PluginRecord) -> None:
        if key in table:
            self._clash(label, table[key].owner, record.owner)
            return
        table[key] = Registered(spec, record.owner)
        record.adds.append(label)

    def _clash(self, label: str, first: Owner, second: Owner) -> None:
        self.clashes.append(
            PluginError(
                f"two plugins bring {label}: {first} and {second}",
                mend=f"uninstall one of them, or leave one out: {DISABLE_VARIABLE}={second.plugin}"
                if first.plugin != second.plugin
                else f"uninstall {first.distribution or 'one'} or {second.distribution or 'the other'}",
            )
        )

    def _check_variants(self) -> None:
        """A stage has variants or it has none, and one default at most."""
        for stage in self.stage_names():
            entries = {algo: entry for (name, algo), entry in self.stages.items() if name == stage}
            plain = entries.pop("", None)
            if plain is not None and entries:
                other = next(iter(entries.values()))
                self.clashes.append(
                    PluginError(
                        f"stage '{stage}' of {plain.owner} has no algorithms, but {other.owner} adds "
                        f"'{other.spec.algorithm}' to it",
                        mend=f"leave one of them out with {DISABLE_VARIABLE}",
                    )
                )
                for algorithm in entries:
                    del self.stages[(stage, algorithm)]
            defaults = [entry for entry in entries.values() if entry.spec.default]
            if len(defaults) > 1:
                self._clash(f"the default algorithm of stage {stage}", defaults[0].owner, defaults[1].owner)

    def left_out(self, name: str) -> str:
        """How something that is not there may be had, where a switch keeps plugins out: those whose name has `name` in
        it, else all; empty where none is kept out."""
        kept = [record for record in self.plugins if record.state == "blocked"]
        likely = [record for record in kept if name and name in re.split(r"_|\W", record.owner.plugin)] or kept
        if not likely:
            return ""
        names = ", ".join(record.owner.plugin for record in likely)
        return f"let in what may bring it: {names} ({likely[0].reason})"

    # -- questions ---------------------------------------------------------------------------------------------------

    @property
    def hook(self) -> Any:
        """The hook relay of this run's manager."""
        return self.manager.hook

    def table(self, kind: Kind) -> dict[Any, Registered[Any]]:
        """What was registered of a kind, by key."""
        table: dict[Any, Registered[Any]] = getattr(self, kind.table)
        return table

    def stage_names(self) -> list[str]:
        """Names of all stages, sorted."""
        return sorted({name for name, _ in self.stages})

    def algorithms(self, stage: str) -> list[str]:
        """Variants of a stage, sorted; empty for a stage without any."""
        return sorted(algo for name, algo in self.stages if name == stage and algo)

    def default_algorithm(self, stage: str) -> str:
        """The variant that `stage=` alone takes: the one marked so, else the first; empty without variants."""
        names = self.algorithms(stage)
        marked = [name for name in names if self.stages[(stage, name)].spec.default]
        return (marked or names or [""])[0]

    def option_name(self, stage: str, algorithm: str) -> str:
        """Name of a variant among all variants: its own, or `<stage>-<own>` where an earlier stage has that one."""
        first = min(name for name, other in self.stages if other == algorithm)
        return algorithm if first == stage else f"{stage}-{algorithm}"

    def check_configs(self) -> None:
        """Mark as broken each plugin with a config dataclass that cannot be used; too slow for every start."""
        for entry in [entry for kind in KINDS if kind.base for entry in self.table(kind).values()]:
            try:
                structured(entry.spec.config)
            except PluginError as error:
                record = next(record for record in self.plugins if record.owner == entry.owner)
                record.state, record.reason = "broken", error.what

    # -- the heavy side ----------------------------------------------------------------------------------------------

    def owner_of(self, spec: Spec) -> Owner:
        """The plugin that registered `spec`."""
        entries = (entry for kind in KINDS for entry in self.table(kind).values())
        return next((entry.owner for entry in entries if entry.spec is spec), Owner(spec.name, "", ""))

    def owner_named(self, plugin: str) -> Owner:
        """The owner of the plugin that pluggy knows by this name."""
        return next((item.owner for item in self.plugins if item.owner.plugin == plugin), Owner(plugin, "", ""))

    def check_requires(self, spec: Spec) -> None:
        """Raise ConfigError, with the command that installs it, where an import name in `requires` is not there."""
        for name in getattr(spec, "requires", ()):
            if not importable(name):
                owner = self.owner_of(spec)
                raise ConfigError(
                    f"'{spec.name}' needs the package '{name}', which is not installed",
                    where=str(owner),
                    mend=install_hint(name, owner.distribution),
                )

    def resolve(self, spec: LoadedSpec) -> Any:
        """Import what `spec.impl` names, after `check_requires`; PluginError when the import fails."""
        self.check_requires(spec)
        module_name, _, attribute = spec.impl.partition(":")
        where = f"{self.owner_of(spec)}, impl '{spec.impl}'"
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            missing = error.name or ""
            foreign = missing and not importable(missing)
            mend = install_hint(missing, self.owner_of(spec).distribution) if foreign else "repair or update the plugin"
            raise PluginError(f"'{spec.name}' cannot be imported: {error}", where=where, mend=mend) from error
        except Exception as error:
            what = f"'{spec.name}' fails while it is imported: {type(error).__name__}: {error}"
            raise PluginError(what, where=where, mend="repair or update the plugin") from error
        try:
            return getattr(module, attribute)
        except AttributeError:
            what = f"'{spec.name}' cannot be found: module {module_name} has no '{attribute}'"
            raise PluginError(what, where=where, mend="repair or update the plugin") from None

    def register(self, made: object, name: str, spec: Spec) -> object:
        """Register what was made of `spec`, the chosen stage or tracker, for the hooks that it answers; returns it.

        Raises PluginError for a hook that does not exist or asks for what it is not given.
        """
        where = f"{self.owner_of(spec)}, impl '{getattr(spec, 'impl', '')}'"
        try:
            check_hooks(self.manager, made)
            self.manager.register(made, name)
        except PluginError as error:
            raise error.within(where) from error
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(" ".join(str(error).split()), where=where, mend="repair or update the plugin") from error
        return made


def check_api(version: object) -> None:
    """Raise PluginError for a plugin that was built for an API which this preftune does not have."""
    if not isinstance(version, int) or isinstance(version, bool):
        raise PluginError(f"{API_ATTRIBUTE} is {version!r}; write the number of core.api.API_VERSION")
    if version > API_VERSION:
        raise PluginError(f"it was built for API {version}, and this preftune has API {API_VERSION}; update preftune")
    if version < OLDEST_API:
        raise PluginError(f"it was built for API {version}, and this preftune takes {OLDEST_API} or newer; update it")


def _name_and_version(distribution: metadata.Distribution | None) -> tuple[str, str]:
    return (distribution.name, distribution.version) if distribution else ("", "")


def _import(value: str) -> object:
    """What an entry point `module` or `module:attribute` names."""
    module_name, _, attribute = value.partition(":")
    found: ModuleType | object = importlib.import_module(module_name.strip())
    for part in filter(None, attribute.strip().split(".")):
        found = getattr(found, part)
    return found
