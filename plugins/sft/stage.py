"""Supervised fine-tuning: the weighted loss of core.training.supervised on demonstrations."""

from __future__ import annotations

from plugins.shared.supervised import SupervisedStage


class Sft(SupervisedStage):
    """The stage: the records as they are."""
