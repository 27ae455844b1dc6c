"""What a stage module may import beside `core.api`: stages, models, packed rows, examples. Importing it loads torch."""

from __future__ import annotations

from core.artifacts.artifact import export_model
from core.commands.sampling import sampling_run
from core.files import atomic_folder, write_text
from core.models.adapters import is_prompt_learning
from core.models.by_role import frozen_policy, models_for_roles, trainable_policy, trainable_scorer
from core.models.guests import Guest, plain_body
from core.models.loading import load_module
from core.models.logprobs import linear_logprobs, logits_logprobs, sum_by_completion
from core.models.packed import Packed, PromptGroup, pack, pack_texts
from core.models.pairs import PairRow, pair_rows
from core.models.roles import Models, ScoreModel, TokenModel
from core.models.start import Start
from core.platform.deprecation import Renamed, renamed_names
from core.tokens.codec import ChatCodec, load_codec
from core.tokens.encoding import ExampleMaker, encoded_prompts
from core.tokens.examples import Demonstration, Pair, Prompt, StageData, check_trained, split_by_tokens
from core.tokens.requests import encoded_again, score_request, shown
from core.tokens.supervision import Supervision
from core.training.evaluate import score_heldout
from core.training.log import RunLog
from core.training.loop import Fitted
from core.training.making import build_rows, save_rows
from core.training.order import step_items
from core.training.parts import Parts
from core.training.recorder import Recorder
from core.training.resume import Checkpoints
from core.training.run import StageRun, heldout_prompts
from core.training.stage import Stage

__all__ = [
    "ChatCodec", "Checkpoints", "Demonstration", "ExampleMaker", "Fitted", "Guest", "Models", "Packed", "Pair",
    "PairRow", "Parts", "Prompt", "PromptGroup", "Recorder", "RunLog", "ScoreModel", "Stage", "StageData",
    "StageRun", "Start", "Supervision", "TokenModel", "atomic_folder", "build_rows", "check_trained",
    "encoded_again", "encoded_prompts", "export_model", "frozen_policy", "heldout_prompts", "is_prompt_learning",
    "linear_logprobs", "load_codec", "load_module", "logits_logprobs", "models_for_roles", "pack", "pack_texts",
    "pair_rows", "plain_body", "sampling_run", "save_rows", "score_heldout", "score_request", "shown",
    "split_by_tokens", "step_items", "sum_by_completion", "trainable_policy", "trainable_scorer", "write_text",
]  # fmt: skip

RENAMED = {
    "demonstrations": Renamed("run.examples.demonstrations", 2),
    "pairs": Renamed("run.examples.pairs", 2),
    "prompts": Renamed("run.examples.prompts", 2),
    "export_models": Renamed("export_model", 2),
    "WeightedRow": Renamed("plugins.sft.stage.WeightedRow", 2),
    "weighted_rows": Renamed("plugins.sft.stage.weighted_rows", 2),
    "weighted_nll": Renamed("plugins.sft.stage.weighted_nll", 2),
}
"""Old name to what replaced it."""
__getattr__ = renamed_names(__name__, RENAMED)
