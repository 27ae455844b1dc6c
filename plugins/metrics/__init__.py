"""Measures of held-out completions and of the policy, for `eval.metrics`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import MetricConfig, MetricSpec, hookimpl, number


@dataclass
class DistinctConfig(MetricConfig):
    """Settings of `distinct`."""

    n: int = number(2, above=0, at_most=1000)
    """Words that stand together."""


@dataclass
class ScoredConfig(MetricConfig):
    """Settings of `scored`."""

    scorer: str = "exact"
    """Reward model whose mean score is told; a rule that needs no settings."""


@hookimpl
def register_metrics() -> list[MetricSpec]:
    """The three."""
    return [
        MetricSpec(
            "distinct", DistinctConfig, "plugins.metrics.completions:distinct", "completions",
            "share of different n-grams of words in all completions (Li et al. 2016, arXiv:1510.03055)",
        ),
        MetricSpec(
            "scored", ScoredConfig, "plugins.metrics.completions:scored", "completions",
            "mean score of the completions by another reward model than eval.scorer",
        ),
        MetricSpec(
            "perplexity", MetricConfig, "plugins.metrics.perplexity:perplexity", "models",
            "exp of the mean loss of a token in the held-out completions",
        ),
    ]  # fmt: skip
