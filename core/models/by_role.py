"""The models that a stage asks for, one for each role: policy, reference, reward model, value model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import nn

from core.config.combinations import changes_base
from core.errors import ModelError
from core.models.adapters import add_adapter
from core.models.judge import judge
from core.models.loading import has_head, load_module
from core.models.roles import Models, ScoreModel, TokenModel
from core.models.start import Start

Shape = Callable[[nn.Module], None]
"""What a plugin's peft method does to a model with its fresh adapter."""


def _adapted(start: Start, module: nn.Module, task: str, shape: Shape | None) -> nn.Module:
    """Mark what trains: everything, or a fresh adapter. What is drawn from here on, its weights and all noise of the
    training, depends on the run's seed alone."""
    cfg = start.cfg
    torch.manual_seed(cfg.runtime.seed)
    if cfg.peft.method == "none":
        module.requires_grad_(True)
        return module
    adapted = add_adapter(module, cfg.peft, task)
    if shape is not None:
        shape(adapted)
    return adapted


def _plain_start(start: Start) -> Path:
    """Folder of the starting weights. An adapter is trained on a plain model that stands on disk, since its artifact
    names it; so does a quantized base, which is read from plain weights."""
    return start.plain if start.cfg.peft.method != "none" else start.folder


def _judge(start: Start, model: TokenModel | ScoreModel) -> None:
    judge(model, start.max_length, start.cfg.model.rows)


def trainable_policy(start: Start, shape: Shape | None = None) -> TokenModel:
    """The policy to be trained, on the road that the judge found for it."""
    module = load_module(_plain_start(start), start.cfg, start.dtype, "CAUSAL_LM", start.cfg.quant)
    model = TokenModel(_adapted(start, module, "CAUSAL_LM", shape)).to(start.device).eval()
    _judge(start, model)
    return model


def trainable_scorer(start: Start, shape: Shape | None = None, folder: Path | None = None) -> ScoreModel:
    """A score model to be trained.

    folder: a reward model, whose head and offset it keeps; None takes the starting weights with a new head.
    """
    place = _plain_start(start) if folder is None else folder
    module = load_module(place, start.cfg, start.dtype, "SEQ_CLS", start.cfg.quant)
    model = ScoreModel(_adapted(start, module, "SEQ_CLS", shape)).to(start.device).eval()
    _judge(start, model)
    return model


def frozen_policy(start: Start, like: TokenModel | None = None) -> TokenModel:
    """A frozen copy of the starting policy. like: a policy from the same weights, whose road it takes."""
    module = load_module(_plain_start(start), start.cfg, start.dtype, "CAUSAL_LM", start.cfg.quant)
    model = TokenModel(module).to(start.device).eval().requires_grad_(False)
    if like is None or like.prompted:
        _judge(start, model)
    else:
        model.follow(like)
    return model


def frozen_scorer(start: Start, folder: Path) -> ScoreModel:
    """A frozen reward model. Raises ModelError for a folder without a scoring head: a random one would score."""
    if not has_head(folder):
        raise ModelError(
            "the reward model has no scoring head in its weights", str(folder), "name a folder that stage=reward made"
        )
    module = load_module(folder, start.cfg, start.dtype, "SEQ_CLS")
    model = ScoreModel(module).to(start.device).eval().requires_grad_(False)
    _judge(start, model)
    return model


def models_for_roles(start: Start, roles: Collection[str], shape: Shape | None = None) -> Models:
    """One model for each of the roles, from the artifacts of the chain or the configured source.

    With an adapter the reference is the policy with its adapter off; there is no second copy, unless the adapter
    changes the base weights.
    shape: what a plugin's peft method does to each fresh adapter.
    """
    models = Models(start)
    if "policy" in roles:
        models.policy = trainable_policy(start, shape)
    if "reference" in roles:
        if start.cfg.peft.method != "none" and not changes_base(start.cfg.peft):
            models.reference_is_adapter_off = True
        else:
            models.reference = frozen_policy(start, models.policy)
    if "reward_model" in roles and start.reward_model is not None:
        models.reward_model = frozen_scorer(start, start.reward_model)
    if "value_model" in roles:
        models.value_model = trainable_scorer(start, shape, start.reward_model)
    return models
