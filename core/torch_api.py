"""What a stage module may import beside `core.api`: models, packed rows, examples. Importing it loads torch."""

from __future__ import annotations

from core.artifacts.artifact import export_models
from core.commands.sampling import sampling_run
from core.files import atomic_folder, write_text
from core.models.guests import Guest, plain_body
from core.models.loading import load_module, models_for_roles, trainable_scorer
from core.models.logprobs import linear_logprobs, logits_logprobs, sum_by_completion
from core.models.packed import Packed, PromptGroup, pack, pack_texts
from core.models.pairs import PairRow, pair_rows
from core.models.roles import Models, ScoreModel, TokenModel
from core.platform.deprecation import Renamed, renamed_names
from core.tokens.codec import load_codec
from core.tokens.examples import (
    Demonstration,
    Pair,
    Prompt,
    StageData,
    check_trained,
    demonstrations,
    encoded_prompts,
    pairs,
    prompts,
    split_by_tokens,
)
from core.tokens.supervision import Supervision
from core.training.evaluate import score_heldout
from core.training.making import build_rows, save_rows
from core.training.order import step_items
from core.training.run import StageRun
from core.training.supervised import WeightedRow, weighted_nll, weighted_rows

__all__ = [
    "Demonstration", "Guest", "Models", "Packed", "Pair", "PairRow", "Prompt", "PromptGroup", "ScoreModel", "StageData",
    "StageRun", "Supervision", "TokenModel", "WeightedRow", "atomic_folder", "build_rows", "check_trained",
    "demonstrations", "encoded_prompts", "export_models", "linear_logprobs", "load_codec", "load_module",
    "logits_logprobs", "models_for_roles", "pack", "pack_texts",
    "pair_rows", "pairs", "plain_body", "prompts", "sampling_run",
    "save_rows", "score_heldout", "split_by_tokens", "step_items", "sum_by_completion", "trainable_scorer",
    "weighted_nll", "weighted_rows", "write_text",
]  # fmt: skip

RENAMED: dict[str, Renamed] = {}
"""Old name to what replaced it."""
__getattr__ = renamed_names(__name__, RENAMED)
