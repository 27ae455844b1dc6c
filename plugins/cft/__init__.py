"""Contextual fine-tuning (Choi et al. 2025, arXiv:2503.09032). Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import ConfigError, PlanView, StageSpec, TextSetSpec, hookimpl, number, require
from plugins.cft.library import KIND, NEGATIVE, STUDY
from plugins.shared.text_config import TextStageConfig, check_files


class Arm(str, Enum):
    """What stands before each chunk."""

    cft = "cft"
    cft_fixed = "cft_fixed"
    cft_negative = "cft_negative"
    cpt = "cpt"


@dataclass
class CftConfig(TextStageConfig):
    """Settings of `stage=cft`."""

    lr: float = 2e-5
    """Peak learning rate (2e-5 in the paper)."""
    epochs: float = 1.0
    """Passes over the chunks (1 in the paper)."""
    arm: Arm = Arm.cft
    """A directive drawn for each chunk, one for all, one from the negative set, or none (continued pre-training)."""
    directives: str = "study"
    """Registered set of directives."""
    directives_path: str | None = None
    """File with directives of one's own, one a line; wins over `directives`."""
    negative: str = "negative"
    """Registered set for the arm `cft_negative`."""
    adaptive: bool = False
    """Let the policy, as it is before training, write a directive for each chunk; arm `cft` only."""
    directive_tokens: int = number(64, above=1, at_most=1_000_000)
    """Room in tokens that is kept for a directive, in every arm, so that all arms have the same chunks."""
    end_every_chunk: bool = False
    """Close every chunk by the end token, not only the last of a document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.adaptive or self.arm is Arm.cft, "stage.arm", "cft where adaptive=true", self.arm.value
        )  # fmt: skip

    def files(self) -> list[str]:
        """Directives of one's own."""
        return [self.directives_path] if self.directives_path else []


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `cft`."""
    return [
        StageSpec(
            name="cft",
            config=CftConfig,
            impl="plugins.cft.stage:Cft",
            data="corpus",
            summary="contextual fine-tuning: a directive before each chunk, loss on the text alone; with its controls",
            paper="Choi et al. 2025, arXiv:2503.09032",
        )
    ]


@hookimpl
def register_text_sets() -> list[TextSetSpec]:
    """The directives and their control."""
    return [
        TextSetSpec("study", KIND, STUDY, "ten ways of reading, three directives each"),
        TextSetSpec("negative", KIND, NEGATIVE, "discouraging and irrelevant directives, as a control"),
    ]


@hookimpl
def modify_plan(plan: PlanView) -> None:
    """Refuse what cannot work before anything is loaded."""
    for stage in plan.stages:
        cfg = stage.cfg.stage
        if not isinstance(cfg, CftConfig):
            continue
        check_files({"stage.directives_path": cfg.directives_path})
        limit = stage.cfg.model.max_length
        if (cfg.chunk_tokens or 2) + cfg.directive_tokens + 2 > limit:
            raise ConfigError(
                f"a chunk of {cfg.chunk_tokens or 2} tokens, a directive of {cfg.directive_tokens}, a begin and an end "
                f"token are over model.max_length={limit}",
                "stage.chunk_tokens, stage.directive_tokens",
                "lower one of them, or raise model.max_length as far as the model's own context goes",
            )
