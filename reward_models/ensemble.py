"""Several reward models as one value, with the spread between them as a measure of doubt.

Subtracting the spread is the uncertainty-weighted objective of Coste et al. 2024 (arXiv:2310.02743), with a standard
deviation where the paper has a variance, so that the penalty keeps the unit of the score; `min` is its worst-case
objective.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from core.api import GuardedScorer, Score, ScorerContext, ScoreRequest
from reward_models import Aggregate, EnsembleConfig


class Ensemble:
    """The members at work, each behind its own guard."""

    def __init__(self, config: EnsembleConfig, members: Sequence[GuardedScorer]) -> None:
        self.config, self.members = config, members
        self.weights = [float(member.get("weight", 1.0)) for member in config.members]
        names = [member.spec.name for member in members]
        self.labels = [f"{i}_{name}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        """Names of the members in `parts`, numbered where one name comes twice."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request; `parts` holds each member's value and `spread`."""
        columns = [member.score(requests) for member in self.members]
        return [self.combine(row) for row in zip(*columns, strict=True)]

    def combine(self, row: Sequence[Score]) -> Score:
        """The ensemble's Score of one completion out of its members'."""
        members = zip(self.labels, self.weights, row, strict=True)
        good = [(label, weight, score.value) for label, weight, score in members if score.value is not None]
        parts = {label: value for label, _, value in good}
        if len(good) < len(row) and not (good and self.config.allow_member_errors):
            label, error = next((la, s.error) for la, s in zip(self.labels, row, strict=True) if s.value is None)
            return Score(None, error=f"member {label}: {error}", parts=parts)
        values, weights = [value for _, _, value in good], [weight for _, weight, _ in good]
        spread = statistics.pstdev(values)
        weighted = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
        value = {
            Aggregate.mean: weighted / math.fsum(map(abs, weights)),
            Aggregate.sum: weighted,
            Aggregate.min: min(values),
            Aggregate.median: statistics.median(values),
        }[self.config.aggregate]
        return Score(value - self.config.spread_coef * spread, parts={**parts, "spread": spread})

    def close(self) -> None:
        """Close every member."""
        for member in self.members:
            member.close()


def build(config: EnsembleConfig, context: ScorerContext) -> Ensemble:
    """The ensemble with its members built. Raises: ConfigError for an unknown member or a bad parameter of one."""
    members = [context.make(name, params, f"reward.members[{i}]") for i, (name, params) in enumerate(config.uses())]
    return Ensemble(config, members)
