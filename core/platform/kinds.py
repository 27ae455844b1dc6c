"""The kinds of part that a plugin can register, one row each: all that core knows of a kind stands there. Torch-free.

A new kind is a spec class, a hook in core.platform.hookspecs, and a row here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.platform import spec_checks, specs
from core.platform.owners import Owner
from core.settings import peft_methods, schema
from core.settings.data_schema import TransformConfig


def _by_name(spec: Any) -> Iterable[tuple[Any, str]]:
    return [(spec.name, spec.name)]


def _by_variant(spec: specs.StageSpec) -> Iterable[tuple[Any, str]]:
    return [((spec.name, spec.algorithm), f"{spec.name}/{spec.algorithm}" if spec.algorithm else spec.name)]


def _by_suffix(spec: specs.ReaderSpec) -> Iterable[tuple[Any, str]]:
    return [(suffix, suffix) for suffix in spec.suffixes]


def _of_peft(name: str) -> Owner | None:
    return Owner("peft", "peft", "itself") if name in ("none", *peft_methods.methods()) else None


@dataclass(frozen=True)
class Kind:
    """One row of the table below."""

    hook: str
    spec: type
    label: str
    """What messages and `plugins` call it."""
    table: str
    """Attribute of the Registry that holds them by key."""
    base: type | None = None
    """What the dataclass of its settings extends; None for a kind without settings."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Groups of the configuration that choose one by name, to a choice that core adds where there is one. Each is a
    field of RunConfig. The groups of a stage, which has algorithms, are made in core.config."""
    listed: str = ""
    """Setting that lists some by name, each with settings of its own."""
    check: Callable[[Any], None] = lambda _: None
    """Raises PluginError for what this kind alone asks of its specs."""
    keys: Callable[[Any], Iterable[tuple[Any, str]]] = _by_name
    """(key in the table, name for people) of each place that a spec takes."""
    names: tuple[re.Pattern[str], str] = spec_checks.WORD
    """What its names may look like."""
    taken: Callable[[str], Owner | None] = lambda _: None
    """Who has a name already that no plugin can have."""

    def specs_of(self, value: Any) -> list[Any]:
        """The specs in what its hook returned. Raises PluginError for anything that cannot be used."""
        found = spec_checks.specs_of(value, self.spec)
        for spec in found:
            spec_checks.check_spec(spec, self.base, self.names)
            self.check(spec)
        return found

    def choice(self, spec: Any) -> str:
        """`reward=NAME`, `stage=NAME algorithm=NAME`: how one is chosen, or at least called."""
        algorithm = getattr(spec, "algorithm", "")
        return f"{next(iter(self.groups), self.label)}={spec.name}" + (f" algorithm={algorithm}" if algorithm else "")


def _choice(field: str, choices: tuple[str, ...]) -> Callable[[Any], None]:
    return lambda spec: spec_checks.check_choice(spec, field, choices)


KINDS = (
    Kind("register_stages", specs.StageSpec, "stage", "stages", schema.StageConfig,
         check=spec_checks.check_stage, keys=_by_variant),
    Kind("register_reward_models", specs.RewardSpec, "reward", "reward_models", schema.RewardConfig,
         groups={"reward": "", "judge": "auto"}),
    Kind("register_rollout_engines", specs.EngineSpec, "rollout", "engines", schema.RolloutConfig,
         groups={"rollout": "auto"}),
    Kind("register_optimizers", specs.OptimizerSpec, "optimizer", "optimizers", schema.OptimizerConfig,
         groups={"optimizer": ""}),
    Kind("register_trackers", specs.TrackerSpec, "tracker", "trackers", schema.TrackerConfig,
         groups={"tracker": "none"}),
    Kind("register_peft_methods", specs.PeftMethodSpec, "peft method", "peft_methods",
         groups={"peft": ""}, check=spec_checks.check_peft_method, taken=_of_peft),
    Kind("register_metrics", specs.MetricSpec, "metric", "metrics", schema.MetricConfig,
         listed="eval.metrics", check=_choice("over", specs.METRIC_SUBJECTS)),
    Kind("register_record_transforms", specs.TransformSpec, "transform", "transforms", TransformConfig,
         listed="data.transforms", check=_choice("kind", specs.TRANSFORM_KINDS)),
    Kind("register_data_sources", specs.DataSourceSpec, "data source", "data_sources"),
    Kind("register_text_sets", specs.TextSetSpec, "text set", "text_sets", check=spec_checks.check_text_set),
    Kind("register_commands", specs.CommandSpec, "command", "commands", names=spec_checks.COMMAND),
    Kind("register_dialects", specs.DialectSpec, "dialect", "dialects", check=spec_checks.check_dialect),
    Kind("register_readers", specs.ReaderSpec, "reader", "readers", check=spec_checks.check_reader, keys=_by_suffix),
)  # fmt: skip

TYPED_GROUPS = {group: kind.base for kind in KINDS if kind.base for group in kind.groups}
"""Group of the configuration to the base of the settings that its choices have."""
LISTED = {kind.listed: kind for kind in KINDS if kind.listed}
"""Setting that lists parts by name, to their kind."""
