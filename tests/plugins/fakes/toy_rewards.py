"""A reward for tests, loaded through PREFTUNE_PLUGINS: counts tokens, and fails where it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.api import RewardConfig, RewardSpec, Score, ScorerContext, ScoreRequest, hookimpl


@dataclass
class ToyConfig(RewardConfig):
    """Share of a completion's tokens whose id can be divided by `divisor`."""

    divisor: int = 4
    """Token ids that are multiples of it count."""
    fail_word: str = ""
    """Prompts with this text cannot be scored."""
    fail_every: int = 0
    """Each so many-th completion of a call cannot be scored; 0 never."""


class Toy:
    """The scorer."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One score for each request."""
        return [self._one(number, request) for number, request in enumerate(requests, start=1)]

    def _one(self, number: int, request: ScoreRequest) -> Score:
        cfg = self.config
        if (cfg.fail_word and cfg.fail_word in request.prompt) or (cfg.fail_every and number % cfg.fail_every == 0):
            return Score(None, error="told to fail")
        hits = sum(token % cfg.divisor == 0 for token in request.completion_ids)
        return Score(hits / len(request.completion_ids))


def build(config: ToyConfig, context: ScorerContext) -> Toy:
    """The scorer for a config."""
    return Toy(config)


@hookimpl
def register_reward_models() -> list[RewardSpec]:
    """The toy."""
    return [RewardSpec("toy", ToyConfig, "toy_rewards:build", "share of tokens with a divisible id")]
