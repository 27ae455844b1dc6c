"""Everything a plugin author may import, and nothing else is public. Importing it loads neither torch nor hydra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.commands.parser import CommandParser
from core.data.files import find_files
from core.data.readers.rows import Row
from core.data.records import Message, Record, Span, Step
from core.data.row_values import RowError, to_text
from core.data.transforms import TextPart, TransformContext, Transformed, text_of, texts_of, words_of
from core.data.turns import to_messages
from core.errors import ArtifactError, ConfigError, DataError, ModelError, PluginError, PreftuneError, TrainingError
from core.files import disk_guard
from core.jsonl import read_rows
from core.platform.deprecation import Renamed, renamed_names
from core.platform.hookspecs import API_VERSION, PROJECT, hookimpl
from core.platform.run_view import PlannedStage, PlanView, Run
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
from core.scoring.guarded import GuardedScorer, ScorerContext, summarise
from core.settings.data_schema import TransformConfig
from core.settings.ranges import number
from core.settings.rules import check_regex, require
from core.settings.schema import (
    MetricConfig,
    OptimizerConfig,
    PeftConfig,
    RewardConfig,
    RolloutConfig,
    Schedule,
    StageConfig,
    TrackerConfig,
)
from core.tables import html_table, markdown_table
from core.tokens import heatmap
from core.tokens.rendering import TemplateLimit, render_bounded
from core.tokens.supervision import TooLong, TrainOn
from core.types import (
    Batch,
    Evaluation,
    Limit,
    LossOutput,
    Rollout,
    RolloutEngine,
    Sampling,
    Score,
    Scorer,
    ScoreRequest,
    Section,
    Stop,
    Work,
)

if TYPE_CHECKING:
    from core.results import ChainStep, MetricChange, Retained, StageResult

__all__ = [
    "API_VERSION", "PROJECT", "ArtifactError", "Batch", "ChainStep", "CommandParser", "CommandSpec", "ConfigError",
    "DataError", "DataSourceSpec", "DialectSpec", "EngineSpec", "Evaluation", "GuardedScorer", "Limit",
    "LossOutput", "Message", "MetricChange", "MetricConfig", "MetricSpec", "ModelError", "OptimizerConfig",
    "OptimizerSpec", "PeftConfig", "PeftMethodSpec", "PlanView", "PlannedStage", "PluginError", "PreftuneError",
    "ReaderSpec", "Record", "Retained", "RewardConfig", "RewardSpec", "Rollout", "RolloutConfig", "RolloutEngine",
    "Row", "RowError", "Run", "Sampling", "Schedule", "Score", "ScoreRequest", "Scorer", "ScorerContext", "Section",
    "Span", "StageConfig", "StageResult", "StageSpec", "Step", "Stop", "TemplateLimit", "TextPart", "TextSetSpec",
    "TooLong", "TrackerConfig", "TrackerSpec", "TrainOn", "TrainingError", "TransformConfig", "TransformContext",
    "TransformSpec", "Transformed", "Work", "check_regex", "disk_guard", "find_files", "heatmap", "hookimpl",
    "html_table", "markdown_table", "number", "read_rows", "render_bounded", "require", "summarise", "text_of",
    "texts_of", "to_messages", "to_text", "words_of",
]  # fmt: skip

RENAMED: dict[str, Renamed] = {}
"""Old name to what replaced it."""
LATER = dict.fromkeys(("ChainStep", "MetricChange", "Retained", "StageResult"), "core.results")
"""Name to its module, which no start needs: help and errors come sooner without."""
__getattr__ = renamed_names(__name__, RENAMED, LATER)
