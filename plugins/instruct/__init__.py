"""Instruction tuning on single- and multi-turn dialogues. Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.api import StageSpec, TrainOn, hookimpl, number
from plugins.sft import SftConfig


@dataclass
class InstructConfig(SftConfig):
    """Settings of `stage=instruct`."""

    lr: float = 2e-5
    """Peak learning rate (2e-5 in Alpaca and Vicuna)."""
    epochs: float = 3.0
    """Passes over the records (3 in Alpaca and Vicuna)."""
    train_on: TrainOn = TrainOn.assistant
    """Turns with a weight: the `last` one, every `assistant` turn, or `all` tokens. Weights in the data win."""
    templates: list[str] = field(default_factory=list)
    """Phrasings that single-turn records are put into: `builtin`, or YAML files in PromptSource's layout."""
    options_frac: float = number(0.5, at_least=0, at_most=1)
    """Share of the records with answer options that are phrased so that the options are shown (0.5 in FLAN 2022)."""

    def files(self) -> list[str]:
        """The files of phrasings."""
        return [name for name in self.templates if name != "builtin"]


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `instruct`."""
    return [
        StageSpec(
            name="instruct",
            config=InstructConfig,
            impl="plugins.instruct.stage:Instruct",
            data="sft",
            summary="instruction tuning: every assistant turn and its end token, mixtures of phrasings, NEFTune",
            paper="Longpre et al. 2023, arXiv:2301.13688; Jain et al. 2023, arXiv:2310.05914",
        )
    ]
