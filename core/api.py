"""Everything a plugin author may import, and nothing else is public. Importing it loads neither torch nor hydra."""

from __future__ import annotations

from core import heatmap
from core.data_files import find_files
from core.data_schema import TransformConfig
from core.errors import ArtifactError, ConfigError, DataError, ModelError, PluginError, PreftuneError, TrainingError
from core.files import disk_guard
from core.hookspecs import API_VERSION, PROJECT, hookimpl
from core.jsonl import read_rows
from core.readers.rows import Row
from core.records import Message, Record, Span, Step
from core.rules import check_regex, require
from core.schema import RewardConfig, RolloutConfig, Schedule, StageConfig, TrackerConfig
from core.scoring import GuardedScorer, ScorerContext, summarise
from core.specs import (
    DataSourceSpec,
    DialectSpec,
    EngineSpec,
    ReaderSpec,
    RewardSpec,
    StageSpec,
    TextSetSpec,
    TrackerSpec,
    TransformSpec,
)
from core.supervision import TooLong, TrainOn
from core.transforms import TextPart, TransformContext, Transformed, text_of, texts_of, words_of
from core.turns import RowError, to_messages, to_text
from core.types import Batch, LossOutput, Rollout, RolloutEngine, Sampling, Score, Scorer, ScoreRequest, Section

__all__ = [
    "API_VERSION", "PROJECT", "ArtifactError", "Batch", "ConfigError", "DataError", "DataSourceSpec", "DialectSpec",
    "EngineSpec", "GuardedScorer", "LossOutput", "Message", "ModelError", "PluginError", "PreftuneError",
    "ReaderSpec", "Record", "RewardConfig", "RewardSpec", "Rollout", "RolloutConfig", "RolloutEngine", "Row",
    "RowError", "Sampling", "Schedule", "Score", "ScoreRequest", "Scorer", "ScorerContext", "Section", "Span",
    "StageConfig", "StageSpec", "Step", "TextPart", "TextSetSpec", "TooLong", "TrackerConfig", "TrackerSpec",
    "TrainOn", "TrainingError", "TransformConfig", "TransformContext", "TransformSpec", "Transformed", "check_regex",
    "disk_guard", "find_files", "heatmap", "hookimpl", "read_rows", "require", "summarise", "text_of", "texts_of",
    "to_messages", "to_text", "words_of",
]  # fmt: skip
