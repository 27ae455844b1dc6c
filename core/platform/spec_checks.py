"""Whether what a plugin registers can be used as it stands. Torch-free."""

from __future__ import annotations

import re
from typing import Any

from core.errors import PluginError
from core.platform.specs import (
    METRIC_SUBJECTS,
    ROLES,
    SCHEMAS,
    TRANSFORM_KINDS,
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
from core.settings.peft_methods import methods

LoadedSpec = (
    StageSpec
    | RewardSpec
    | EngineSpec
    | OptimizerSpec
    | PeftMethodSpec
    | MetricSpec
    | TrackerSpec
    | DataSourceSpec
    | CommandSpec
    | TransformSpec
    | ReaderSpec
)
"""What names its code by `impl`."""

Spec = LoadedSpec | DialectSpec | TextSetSpec
"""Anything that a plugin registers."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NAMES = (_NAME, "letters, digits and _")
_COMMAND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = re.compile(r"\.[a-z0-9_]+")
_IMPL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def specs_of(value: Any, kind: type) -> list[Any]:
    """The specs in what a hook returned; PluginError when it is anything but a list of `kind`."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise PluginError(f"must return a list of {kind.__name__}, returned {value!r}")
    return list(value)


def check_spec(spec: Any, base: type | None) -> None:
    """Raise PluginError unless a spec can be used as it stands."""
    pattern, allowed = (_COMMAND, "small letters, digits and -") if isinstance(spec, CommandSpec) else _NAMES
    if not pattern.fullmatch(spec.name):
        raise PluginError(f"{type(spec).__name__} has the name {spec.name!r}; use {allowed}")
    if isinstance(spec, DialectSpec):
        _check_dialect(spec)
        return
    if isinstance(spec, TextSetSpec):
        if not spec.texts or not all(texts and all(text.strip() for text in texts) for texts in spec.texts.values()):
            raise PluginError(f"{spec.name}: texts must name at least one category, and no text may be empty")
        return
    if not _IMPL.fullmatch(spec.impl):
        raise PluginError(f"{spec.name}: impl is {spec.impl!r}; write 'package.module:Name'")
    if base is not None:
        if not (isinstance(spec.config, type) and issubclass(spec.config, base)):
            raise PluginError(f"{spec.name}: config must be a dataclass that extends {base.__name__}")
        if "__dataclass_params__" not in vars(spec.config):
            raise PluginError(f"{spec.name}: {spec.config.__name__} lacks the @dataclass decorator")
    _check_fields(spec)


def _check_fields(spec: Any) -> None:
    """What one kind alone has."""
    if isinstance(spec, TransformSpec) and spec.kind not in TRANSFORM_KINDS:
        raise PluginError(f"{spec.name}: kind is {spec.kind!r}; must be one of {', '.join(TRANSFORM_KINDS)}")
    if isinstance(spec, MetricSpec) and spec.over not in METRIC_SUBJECTS:
        raise PluginError(f"{spec.name}: over is {spec.over!r}; must be one of {', '.join(METRIC_SUBJECTS)}")
    if isinstance(spec, PeftMethodSpec) and (known := methods()) and spec.base not in known:
        raise PluginError(f"{spec.name}: base is {spec.base!r}; must be a method of peft: {', '.join(known)}")
    if isinstance(spec, StageSpec):
        _check_stage(spec)
    if isinstance(spec, ReaderSpec) and not (spec.suffixes and all(map(_SUFFIX.fullmatch, spec.suffixes))):
        raise PluginError(f"{spec.name}: suffixes is {spec.suffixes!r}; write e.g. ('.xyz',), in lower case")


def _check_stage(spec: StageSpec) -> None:
    if spec.data not in SCHEMAS:
        raise PluginError(f"{spec.name}: data is {spec.data!r}; must be one of {', '.join(SCHEMAS)}")
    if unknown := [role for role in (*spec.roles, *spec.after) if role not in ROLES]:
        raise PluginError(f"{spec.name}: unknown role {unknown[0]!r}; must be one of {', '.join(ROLES)}")
    if spec.algorithm and not _NAME.fullmatch(spec.algorithm):
        raise PluginError(f"{spec.name}: algorithm has the name {spec.algorithm!r}; use letters, digits and _")


def _check_dialect(spec: DialectSpec) -> None:
    if not spec.required:
        raise PluginError(f"{spec.name}: required is empty, so every row would fit")
    tests = {**spec.required, **spec.optional, "parse": spec.parse}
    if wrong := [name for name, test in tests.items() if not callable(test)]:
        raise PluginError(f"{spec.name}: '{wrong[0]}' is no function")
    if wrong := [name for name in spec.aliases if name not in tests]:
        raise PluginError(f"{spec.name}: aliases names '{wrong[0]}', which is neither required nor optional")
    if spec.named and not spec.aliases.get("prompt"):
        raise PluginError(f"{spec.name}: named=True asks for the columns of 'prompt' in aliases")


def structured(config: type) -> Any:
    """The dataclass as an OmegaConf node; PluginError when a field has a type that OmegaConf cannot hold."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.structured(config)
    except Exception as error:
        text = str(error).splitlines()[0]
        raise PluginError(f"{config.__name__} cannot be used as a config: {text}") from error
