"""Perplexity of the held-out completions. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from core.api import DataError, MetricConfig
from core.torch_api import Demonstration, Models, StageRun
from plugins.sft.stage import weighted_nll, weighted_rows


def perplexity(config: MetricConfig, run: StageRun) -> Callable[[Models, Any], float]:
    """exp(mean -log p) over the tokens of the held-out completions (the chosen ones of pairs), end of turn included.

    Every such token counts alike, whatever the stage trains on. Raises DataError where no record has a completion.
    """
    del config

    @cache
    def examples() -> list[Demonstration]:
        held = [record for record in run.plan.dataset.heldout if record.completion or record.chosen]
        found = list(run.examples.demonstrations(held)) if held else []
        if not found:
            raise DataError(
                "no held-out record has a completion", "eval.metrics (perplexity)",
                "hold out demonstrations or pairs, or leave it out",
            )  # fmt: skip
        return found

    def measure(models: Models, data: Any) -> float:
        del data
        rows = weighted_rows(examples(), run.cfg.stage.micro_batch_tokens)
        return math.exp(sum(weighted_nll(models, row).item() for row in rows))

    return measure
