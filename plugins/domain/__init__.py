"""Continued pre-training on raw text. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from core.api import ConfigError, PlanView, StageSpec, hookimpl, number, require
from plugins.shared.text_config import TextStageConfig, check_files

ROW_METHODS = ("none", "lora")
"""Adapter methods that can train new rows of the embedding."""


class NewRows(str, Enum):
    """What the embedding of a new token starts from."""

    pieces = "pieces"
    mean = "mean"


@dataclass
class ReplayConfig:
    """General text that is mixed in against forgetting."""

    path: str | None = None
    """File, folder or hub dataset of raw text; unset means no replay."""
    fraction: float = number(0.1, above=0, below=1)
    """Share of the trained tokens that come from it."""


@dataclass
class DomainConfig(TextStageConfig):
    """Settings of `stage=domain`."""

    lr: float = 2e-5
    """Peak learning rate; for a LoRA about ten times as much (2e-4 in Chinese-LLaMA)."""
    join: bool = False
    """Cut all documents as one stream, so that a chunk may hold several, which see each other."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """General text that is mixed in: `stage.replay.path`, `stage.replay.fraction`."""
    new_tokens: int = number(0, at_least=0, at_most=1_000_000)
    """Tokens that the vocabulary grows by; learned from the training documents."""
    new_rows: NewRows = NewRows.pieces
    """Where a new token's embedding starts: the mean over the old tokens it replaces, or the mean over all."""
    new_rows_steps: int = number(0, at_least=0)
    """First steps, in which only the new tokens' embeddings train."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.target_tokens is None, "stage.target_tokens", "unset: replay counts its own", self.target_tokens)
        if self.new_rows_steps:
            require(self.new_tokens > 0, "stage.new_tokens", "> 0 where new_rows_steps is", self.new_tokens)
            # Decay would move the old rows too, which have no gradient in these steps.
            require(
                self.weight_decay == 0, "stage.weight_decay", "0 where new_rows_steps is above 0",
                self.weight_decay,
            )  # fmt: skip

    def files(self) -> list[str]:
        """The replay text."""
        return [self.replay.path] if self.replay.path else []


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `domain`."""
    return [
        StageSpec(
            name="domain",
            config=DomainConfig,
            impl="plugins.domain.stage:Domain",
            data="text",
            summary="continued pre-training on raw text, with replay against forgetting and new tokens",
        )
    ]


@hookimpl
def modify_plan(plan: PlanView) -> None:
    """Refuse what cannot work before anything is loaded."""
    for stage in plan.stages:
        cfg = stage.cfg.stage
        if not isinstance(cfg, DomainConfig):
            continue
        limit = stage.cfg.model.max_length
        if cfg.chunk_tokens is not None and cfg.chunk_tokens > limit:
            raise ConfigError(
                f"stage.chunk_tokens={cfg.chunk_tokens} is over model.max_length={limit}",
                "stage.chunk_tokens",
                "lower it, or raise model.max_length as far as the model's own context goes",
            )
        if cfg.new_tokens and stage.cfg.peft.method not in ROW_METHODS:
            raise ConfigError(
                f"peft={stage.cfg.peft.method} cannot train the rows of new tokens",
                "stage.new_tokens",
                f"set peft to one of: {', '.join(ROW_METHODS)}",
            )
        check_files({"stage.replay.path": cfg.replay.path})
