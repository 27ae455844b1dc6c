"""Accepts a composed configuration: unknown keys, missing values, adapter options, typed objects. Torch-free.

What cannot be accepted becomes a ConfigError that says what, where and how to mend it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.config.misplaced import PARTS, unknown_key, unknown_upstream, upstream_stages
from core.config.values import check_folder, check_named, check_utf8, check_values
from core.errors import ConfigError
from core.platform.kinds import KINDS, LISTED
from core.platform.named_parts import named_configs
from core.platform.registry import Registry
from core.settings import peft_methods
from core.settings.convert import placed
from core.settings.fields import FieldDoc, field_docs, field_names
from core.settings.ranges import check_number, check_numbers
from core.settings.rules import require, shortened, shown
from core.settings.schema import PeftConfig, RunConfig, ShapedPeftConfig
from core.suggest import did_you_mean, nearest


def _doc(config: type | None, name: str) -> FieldDoc | None:
    if config is None or not dataclasses.is_dataclass(config):
        return None
    return next((doc for doc in field_docs(config) if doc.name == name), None)


def wrong_type(full_key: str, config: type | None, value: object, text: str) -> ConfigError:
    """The error for a value that cannot be converted to the type of its field."""
    name = full_key.rpartition(".")[2].partition("[")[0]
    doc = _doc(config, name)
    if doc is None:
        return ConfigError(f"'{full_key}' has the wrong type: {text}", mend=f"give {full_key} another value")
    if "|" in doc.type and " " not in doc.type:
        kind = f"one of {doc.type.replace('|', ', ')}"
    else:
        kind = f"{'an' if doc.type[0] in 'aeiou' else 'a'} {doc.type}"
    return ConfigError(
        f"'{full_key}' must be {kind}, got {shown(value)}", where=doc.line(), mend=f"set {full_key}=… ({text})"
    )


def check_keys(cfg: DictConfig) -> None:
    """Raise ConfigError for the first key that no dataclass knows. Free dictionaries may hold any key."""
    _walk(cfg, "", RunConfig)
    if not isinstance(cfg.upstream, DictConfig | None):
        raise ConfigError(
            f"'upstream' must hold settings by stage, got {shown(cfg.upstream)}",
            mend="write upstream.STAGE.KEY=…; which stages run is said by pipeline.stages=[…]",
        )


def _walk(node: DictConfig, prefix: str, config: type) -> None:
    known = set(field_names(config))
    for key in map(str, node):
        path = f"{prefix}.{key}" if prefix else str(key)
        if key not in known:
            raise unknown_key(path, config, added=True, node=node)
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        _descend(node[key], path)


def _descend(child: Any, path: str) -> None:
    if isinstance(child, ListConfig):
        for place, item in enumerate(child):
            _descend(item, f"{path}[{place}]")
    if not isinstance(child, DictConfig) or child._is_none():
        return
    config = OmegaConf.get_type(child)
    if dataclasses.is_dataclass(config):
        _walk(child, path, config)
    elif path == "data.mixture":
        for key in map(str, child):
            _descend(child[key], f"{path}.{key}")
    elif path == "upstream":
        stages = upstream_stages(child._get_root())
        for key in map(str, child):
            if key not in stages:
                raise unknown_upstream(key, stages, added=True)
            _descend(child[key], f"{path}.{key}")


def check_missing(cfg: DictConfig) -> None:
    """Raise ConfigError naming every value that has no default and was not given."""
    names = sorted(name for name in OmegaConf.missing_keys(cfg) if not name.startswith("upstream."))
    if not names:
        return
    lines = []
    for name in names:
        parent = name.rpartition(".")[0]
        config = OmegaConf.get_type(OmegaConf.select(cfg, parent)) if parent else RunConfig
        doc = _doc(config, name.rpartition(".")[2])
        lines.append(f"{name}: {doc.doc}" if doc else name)
    listed = ", ".join(f"'{name}'" for name in names)
    raise ConfigError(f"{listed} must be given", where="; ".join(lines), mend=" ".join(f"{name}=…" for name in names))


def shaped_peft(config: PeftConfig, registry: Registry) -> PeftConfig:
    """A plugin's method as the method of peft that it stands on, its options under those of the user."""
    entry = registry.peft_methods.get(config.method)
    if entry is None:
        return config
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(PeftConfig)}
    values |= {"method": entry.spec.base, "options": {**entry.spec.options, **config.options}}
    return ShapedPeftConfig(**values, shaped_by=entry.spec.name, owner=str(entry.owner))


def check_peft(config: PeftConfig, plugin_methods: Iterable[str] = ()) -> None:
    """Raise ConfigError for a method or an option that the installed peft library does not have."""
    known = peft_methods.methods()
    if config.method == "none" or not known:
        return
    if config.method not in known:
        known = (*known, *plugin_methods)
        hint = did_you_mean(config.method, known)
        raise ConfigError(
            f"'peft.method' is '{config.method}', which the installed peft library does not have{hint}",
            mend=f"choose one of: none, {', '.join(known)}",
        )
    fields = peft_methods.option_fields(config.method)
    if fields is None:
        return
    for key, value in config.options.items():
        if (meaning := peft_methods.meaning(config.method, key)) is not None:
            check_number(PeftConfig, meaning, value, f"peft.options.{key}")
        if key in peft_methods.INTERNAL:
            raise ConfigError(f"'peft.options.{key}' is filled in by preftune", mend=f"leave peft.options.{key} out")
        if key not in fields:
            near = nearest(key, fields)
            raise ConfigError(
                f"unknown option 'peft.options.{key}' of method '{config.method}'{did_you_mean(key, fields)}",
                where=f"options of '{config.method}': {', '.join(fields)}",
                mend=f"write peft.options.{near}=…" if near else "choose one of the options above",
            )


def _own_error(error: BaseException | None) -> ConfigError | None:
    """The ConfigError behind an exception that OmegaConf made out of it."""
    found = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ConfigError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _object(node: Any, prefix: str) -> Any:
    """A part as its typed object; this is when its own checks run."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    config = OmegaConf.get_type(node)
    if isinstance(node, DictConfig) and dataclasses.is_dataclass(config):
        check_numbers(config, resolved(node), prefix)
    try:
        return OmegaConf.to_object(node)
    except Exception as error:
        own = _own_error(error)
        if own is not None and config is not None and dataclasses.is_dataclass(config):
            part = next((name for name, base in PARTS.items() if issubclass(config, base)), "")
            raise placed(own, config, prefix, part) from None
        if own is not None:
            raise own from None
        if isinstance(error, OmegaConfBaseException | ValueError | TypeError):
            key = getattr(error, "full_key", None) or prefix
            what = f"'{key}' is not accepted: {shortened(str(error))}"
            raise ConfigError(what, mend=f"set {key}=… to another value, or leave it out") from error
        raise


def to_typed(cfg: DictConfig) -> RunConfig:
    """The whole configuration as typed objects; `upstream` becomes a dictionary of stage configs by name.

    An upstream entry that still lacks a value is left out: nobody has asked for that stage yet.
    """
    values: dict[str, Any] = {}
    for name in field_names(RunConfig):
        node = cfg[name]
        if name == "upstream":
            parts = {} if node is None else {str(key): node[key] for key in node}
            values[name] = {
                key: _object(part, f"upstream.{key}") for key, part in parts.items() if not OmegaConf.missing_keys(part)
            }
        else:
            values[name] = _object(node, name)
    return RunConfig(**values)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as JSON values."""
    found = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def check_choices(cfg: DictConfig, registry: Registry) -> None:
    """Raise ConfigError where the name of a part was typed or preset, instead of chosen: its settings are another's."""
    _check_stage(cfg.stage, "stage", registry)
    for name, node in (cfg.upstream or {}).items():
        _check_stage(node, f"upstream.{name}", registry, str(name))
    for kind in KINDS:
        for group, added in kind.groups.items():
            node = cfg.get(group) if kind.base else None
            if not isinstance(node, DictConfig):
                continue
            name, config = node.get("name"), OmegaConf.get_type(node)
            table = registry.table(kind)
            of_base = name == added and config is kind.base
            if not of_base and not (name in table and config is table[name].spec.config):
                known = sorted({*table, *filter(None, [added])})
                chosen = f"{name}, without '.name'" if name in known else f"NAME; there are: {', '.join(known)}"
                what = f"'{group}.name' is {shown(name)}, but '{group}' holds the settings of another choice"
                hint = "" if name in known else did_you_mean(str(name), known)
                raise ConfigError(what + hint, mend=f"choose with {group}={chosen}")


def _check_stage(node: Any, key: str, registry: Registry, named: str = "") -> None:
    """Raise ConfigError unless a node holds the settings of a registered stage (or algorithm) under its own name.

    named: the stage that it must be; "" for any.
    """
    config = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    name, algorithm = (node.get("name"), node.get("algorithm")) if isinstance(node, DictConfig) else (None, None)
    entry = registry.stages.get((str(name), str(algorithm)))
    if entry is not None and config is entry.spec.config and named in ("", name):
        return
    if named:
        fixed = f"'{named}'" + (f" with the algorithm '{default}'" if (default := registry.default_algorithm(named))
                                else "")  # fmt: skip
        mend = f"leave {key}.name and {key}.algorithm out: a stage before the last one is {fixed}"
    else:
        mend = "choose a stage with stage=NAME and algorithm=NAME; their names are not settings"
    what = f"'{key}' does not hold the settings of {key}.name={shown(name)}, {key}.algorithm={shown(algorithm)}"
    raise ConfigError(what, mend=mend)


def accept(cfg: DictConfig, registry: Registry) -> RunConfig:
    """The composed configuration as a typed, checked RunConfig; ConfigError where it cannot be one."""
    try:
        check_keys(cfg)
        check_missing(cfg)
        check_values(resolved(cfg))
        check_choices(cfg, registry)
        typed = to_typed(cfg)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        what = f"'{error.full_key}' cannot be read: {str(error).splitlines()[0]}"
        raise ConfigError(what, mend=f"set {error.full_key}=… to a value, or to the key of another setting") from error
    require(bool(typed.model.source.strip()), "model.source", "a hub id, a folder or a file", typed.model.source)
    check_folder("runs_dir", typed.runs_dir)
    named = {"data.path": typed.data.path, "model.source": typed.model.source, "retention.texts": typed.retention.texts}
    named |= {f"data.mixture.{name}.path": source.path for name, source in typed.data.mixture.items()}
    check_named({**named, "model.chat_template": typed.model.chat_template})
    check_utf8("model.chat_template", typed.model.chat_template)
    typed.peft = shaped_peft(typed.peft, registry)
    check_peft(typed.peft, registry.peft_methods)
    for setting in LISTED:
        part, _, key = setting.partition(".")
        holder = getattr(typed, part)
        setattr(holder, key, named_configs(getattr(holder, key), setting, registry))
    return typed
