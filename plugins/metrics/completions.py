"""Measures of what the policy said. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.api import ConfigError, ScoreRequest, TrainingError, summarise, words_of

if TYPE_CHECKING:
    from core.torch_api import StageRun
    from plugins.metrics import DistinctConfig, ScoredConfig

Measure = Callable[[Sequence[ScoreRequest]], dict[str, float]]


def distinct(config: DistinctConfig, run: StageRun) -> Measure:
    """Different n-grams over all n-grams, 0..1, under the name of n; 0 where no completion has n words."""
    del run

    def measure(requests: Sequence[ScoreRequest]) -> dict[str, float]:
        texts = [words_of(request.completion) for request in requests]
        grams = [tuple(words[i : i + config.n]) for words in texts for i in range(len(words) - config.n + 1)]
        return {str(config.n): len(set(grams)) / max(len(grams), 1)}

    return measure


def scored(config: ScoredConfig, run: StageRun) -> Measure:
    """Mean score under the scorer's name. Raises TrainingError where every completion fails to be scored."""
    try:
        scorer = run.parts.rule(config.scorer)
    except ConfigError as error:
        raise ConfigError(
            f"the metric 'scored' cannot score with '{config.scorer}': {error.what}", "eval.metrics (scored)",
            "take a scorer that needs no settings, e.g. {name: scored, scorer: exact}",
        ) from error  # fmt: skip

    def measure(requests: Sequence[ScoreRequest]) -> dict[str, float]:
        scores = scorer.score(list(requests))
        mean = summarise(scores)["mean"]
        if mean is None:
            raise TrainingError(
                f"'{config.scorer}' could score no completion: {scores[0].error}", "eval.metrics (scored)",
                "take another scorer, or leave it out",
            )  # fmt: skip
        return {config.scorer: mean}

    return measure
