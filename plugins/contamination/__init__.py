"""Contamination check: training records that hold a piece of an evaluation set. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from core.api import TransformConfig, TransformSpec, hookimpl, number, require


class Action(str, Enum):
    """What is done with training records that overlap."""

    drop = "drop"
    warn = "warn"
    refuse = "refuse"


@dataclass
class ContaminationConfig(TransformConfig):
    """Settings of `contamination`."""

    against: list[str] = field(default_factory=list)
    """Files or folders of evaluation sets, of any layout: all their texts count."""
    columns: list[str] = field(default_factory=list)
    """Columns of those files that count; unset takes all."""
    heldout: bool = True
    """The run's own held-out records count too."""
    ngram: int = number(13, above=1, at_most=1000)
    """Words in a row that make an overlap (13 in GPT-3, arXiv:2005.14165, appendix C)."""
    min_words: int = number(8, above=1, at_most=1000)
    """Evaluation texts shorter than `ngram` words overlap as a whole, if they have at least so many words. Above
    `ngram` it counts as `ngram`."""
    action: Action = Action.drop
    """`drop` the training records (they go to quarantine), `warn`, or `refuse` to run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.against) or self.heldout, "against", "a list of files, or heldout=true", self.against)


@hookimpl
def register_record_transforms() -> list[TransformSpec]:
    """The check."""
    return [
        TransformSpec("contamination", ContaminationConfig, "plugins.contamination.overlap:build", "check", "1",
                      "looks for n-grams of evaluation sets in training records: drops them, warns, or refuses"),
    ]  # fmt: skip
