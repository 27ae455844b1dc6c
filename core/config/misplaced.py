"""What is said of a key that there is not: which settings were probably meant, here or elsewhere. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Container

from core.errors import ConfigError
from core.platform.kinds import TYPED_GROUPS
from core.settings.data_schema import DataConfig
from core.settings.fields import field_names, hints_of
from core.settings.schema import (
    EvalConfig,
    ModelConfig,
    PeftConfig,
    PipelineConfig,
    RetentionConfig,
    RunConfig,
    RuntimeConfig,
    StageConfig,
)
from core.suggest import STRONG, did_you_mean, folded, nearest, question

PARTS: dict[str, type] = {
    "stage": StageConfig,
    "model": ModelConfig,
    "peft": PeftConfig,
    "data": DataConfig,
    **TYPED_GROUPS,
    "runtime": RuntimeConfig,
    "eval": EvalConfig,
    "retention": RetentionConfig,
    "pipeline": PipelineConfig,
}
"""Groups of settings that a misplaced key is looked for in, each with the class that is at least there."""
CHOICES = {
    "algorithm": "choose with algorithm=NAME, without '+'; its settings are stage.KEY=…",
    "experiment": "choose with experiment=NAME, without '+'; what it sets is changed by the setting's own key",
}
"""Words of the top level that stand for no settings of their own, and how they are used."""
SECTIONS = ("upstream", "runtime", "eval", "plugins", "retention", "study")
"""Parts that cannot be chosen by name, so that only keys inside them can be typed."""
SET_BY_CHOICE = ("name", "algorithm")
"""Fields that the choice of a part fills in."""
_NAMED = tuple(part for part in PARTS.values() if "name" in field_names(part))
_MOST = 3
"""Most settings that are proposed."""


def unknown_key(full_key: str, config: type | None, added: bool = False, node: object = None) -> ConfigError:
    """The error for a key that the dataclass `config` at its place does not have.

    added: it came with '+', which Hydra accepts anywhere.
    node: the part of the configuration that lacks it; from there the chosen parts are found, whose settings may be
        meant.
    """
    parent, _, name = full_key.rpartition(".")
    root = node._get_root() if isinstance(node, Container) else None
    if parent == "upstream":
        return unknown_upstream(name, upstream_stages(root), added)
    top = config is None or (is_dataclass(config) and issubclass(config, RunConfig))
    if top and name in CHOICES:
        return ConfigError(f"'{name}' has no settings of its own", mend=CHOICES[name])
    known = _names(config, top)
    near = nearest(name, known, STRONG)
    others = _elsewhere(name, full_key, root)
    if not near and not others:
        near = nearest(name, known)
    here = f"{parent}.{near}" if parent else near
    shown = ([near] if near else []) + [key for key in others if key != here]
    what = f"unknown key '{full_key}'" + (", added with '+'" if added else "") + question(shown[:_MOST])
    where = f"{parent or 'the top level'} takes: {', '.join(known)}" if known else ""
    if shown:
        meant = {near: _typed(here, config, near)} | others
        mend = f"write {' or '.join(meant[key] for key in shown[:_MOST])}"
    elif known:
        mend = "choose one of the keys above; --help explains them"
    elif parent == "data.mixture":
        mend = f"say it of a source, by its name: data.mixture.NAME.{name}=…"
    else:
        mend = f"write +{full_key}=… where any key may stand"
    return ConfigError(what, where, mend)


def unknown_upstream(name: str, stages: list[str], added: bool = False) -> ConfigError:
    """The error for a key of `upstream` that is no stage."""
    what = f"unknown key 'upstream.{name}'" + (", added with '+'" if added else "") + did_you_mean(name, stages)
    return ConfigError(what, mend=f"upstream takes the names of stages: {', '.join(stages)}")


def upstream_stages(root: Any) -> list[str]:
    """Names of the stages that `upstream` has entries of."""
    found = root.get("upstream") if isinstance(root, DictConfig) else None
    if not isinstance(found, DictConfig):
        return []
    return [key for key in map(str, found) if is_dataclass(OmegaConf.get_type(found[key]))]


def _names(config: type | None, top: bool) -> list[str]:
    """Keys that can be typed at a place; none where any key may stand."""
    if top:
        return [*field_names(RunConfig), *CHOICES]
    if config is None or not is_dataclass(config):
        return []
    named = issubclass(config, _NAMED)
    return [name for name in field_names(config) if not (named and name in SET_BY_CHOICE)]


def _elsewhere(name: str, full_key: str, root: object) -> dict[str, str]:
    """Full keys of the same name at other places, and how each is typed."""
    found = {}
    if "." in full_key:
        within = full_key.partition(".")[0]
        for key in (*field_names(RunConfig), *CHOICES):
            inside_itself = key == within and key in SECTIONS
            if folded(key) == folded(name) and not inside_itself and not (key == "stage" and within == "upstream"):
                found[key] = _typed(key)
    for part, base in PARTS.items():
        chosen = OmegaConf.get_type(root, part) if isinstance(root, DictConfig) and part in root else None
        settings = _settings(chosen if chosen is not None and is_dataclass(chosen) else base, part)
        found |= {key: typed for key, typed in settings if folded(key.rpartition(".")[2]) == folded(name)}
    found.pop(full_key, None)
    return found


def _settings(config: type, prefix: str) -> Iterator[tuple[str, str]]:
    """Full keys of the settings of a dataclass, those of nested ones too, and how each is typed."""
    for item in fields(config):
        if item.name not in SET_BY_CHOICE:
            key = f"{prefix}.{item.name}"
            yield key, _typed(key, config, item.name)
            if (inner := _nested(config, item.name)) is not None:
                yield from _settings(inner, key)


def _nested(config: type | None, name: str) -> type | None:
    """The dataclass that a field holds, where it holds one."""
    hint = None if config is None else hints_of(config).get(name)
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _typed(key: str, config: type | None = None, name: str = "") -> str:
    """`key=…`, or `key.KEY=…` where only keys inside it can be typed.

    config, name: class and field of a key below the top level.
    """
    holds_keys = _nested(config, name) is not None if "." in key else key in SECTIONS
    return f"{key}.KEY=…" if holds_keys else f"{key}=…"
