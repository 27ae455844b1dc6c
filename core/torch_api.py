"""What a stage module may import beside `core.api`: models, packed rows, examples. Importing it loads torch."""

from __future__ import annotations

from core.artifact import export_models
from core.evaluate import score_heldout
from core.examples import (
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
from core.files import atomic_folder, write_text
from core.guests import Guest, plain_body
from core.loading import load_module, models_for_roles, trainable_scorer
from core.logprobs import linear_logprobs, logits_logprobs, sum_by_completion
from core.making import build_rows, save_rows
from core.models import Models, ScoreModel, TokenModel
from core.order import step_items
from core.packed import Packed, PromptGroup, pack, pack_texts
from core.run import StageRun
from core.supervised import WeightedRow, weighted_nll, weighted_rows
from core.supervision import Supervision
from core.tokens import load_codec

__all__ = [
    "Demonstration", "Guest", "Models", "Packed", "Pair", "Prompt", "PromptGroup", "ScoreModel", "StageData",
    "StageRun", "Supervision", "TokenModel", "WeightedRow", "atomic_folder", "build_rows", "check_trained",
    "demonstrations", "encoded_prompts", "export_models", "linear_logprobs", "load_codec", "load_module",
    "logits_logprobs", "models_for_roles", "pack", "pack_texts", "pairs", "plain_body", "prompts", "save_rows",
    "score_heldout", "split_by_tokens", "step_items", "sum_by_completion", "trainable_scorer", "weighted_nll",
    "weighted_rows", "write_text",
]  # fmt: skip
