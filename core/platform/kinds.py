"""The kinds of part that a plugin can register: hook, spec, base of its settings, and where the registry keeps it.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from core.settings.data_schema import TransformConfig
from core.settings.schema import MetricConfig, OptimizerConfig, RewardConfig, RolloutConfig, StageConfig, TrackerConfig


@dataclass(frozen=True)
class Kind:
    """One row of the table below."""

    hook: str
    spec: type
    label: str
    """What messages and `plugins` call it."""
    table: str
    """Attribute of the Registry that holds them by name."""
    base: type | None = None
    """What the dataclass of its settings extends; None for a kind without settings."""


KINDS = (
    Kind("register_stages", StageSpec, "stage", "stages", StageConfig),
    Kind("register_reward_models", RewardSpec, "reward", "reward_models", RewardConfig),
    Kind("register_rollout_engines", EngineSpec, "rollout", "engines", RolloutConfig),
    Kind("register_optimizers", OptimizerSpec, "optimizer", "optimizers", OptimizerConfig),
    Kind("register_peft_methods", PeftMethodSpec, "peft method", "peft_methods"),
    Kind("register_metrics", MetricSpec, "metric", "metrics", MetricConfig),
    Kind("register_trackers", TrackerSpec, "tracker", "trackers", TrackerConfig),
    Kind("register_data_sources", DataSourceSpec, "data source", "data_sources"),
    Kind("register_record_transforms", TransformSpec, "transform", "transforms", TransformConfig),
    Kind("register_text_sets", TextSetSpec, "text set", "text_sets"),
    Kind("register_commands", CommandSpec, "command", "commands"),
    Kind("register_dialects", DialectSpec, "dialect", "dialects"),
    Kind("register_readers", ReaderSpec, "reader", "readers"),
)
