"""A reward model that gives NaN for some completions, or for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.api import RewardConfig, RewardSpec, Score, ScoreRequest, hookimpl


@dataclass
class GappyConfig(RewardConfig):
    """NaN for every `every`-th completion."""

    every: int = 5
    """1 gives NaN for all."""


class Gappy:
    """The scorer."""

    def __init__(self, config: GappyConfig, context: Any) -> None:
        self.every = config.every

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """NaN, or the number of characters."""
        return [
            Score(math.nan if index % self.every == 0 else float(len(request.completion)))
            for index, request in enumerate(requests)
        ]


@hookimpl
def register_reward_models() -> list[RewardSpec]:
    """The reward model `gappy`."""
    return [RewardSpec(name="gappy", config=GappyConfig, impl="bad_reward:Gappy", summary="NaN now and then")]
