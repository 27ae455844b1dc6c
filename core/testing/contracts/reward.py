"""What every reward model must keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from core.api import ScoreRequest
from core.config.typed import typed_config
from core.platform.registry import Registry
from core.testing.contracts.base import ConfiguredContract, rollout_stage
from core.testing.run import StageRunner


class RewardContract(ConfiguredContract):
    """A reward model that needs no trained model."""

    reward: ClassVar[str] = ""
    requests: ClassVar[tuple[ScoreRequest, ...]] = (
        ScoreRequest("Name a number.", "seven", (5, 6), (7, 2), answer="seven"),
        ScoreRequest("Name a number.", "I would say that it is seven.", (5, 6), (8, 9, 10, 7, 2), answer="eight"),
        ScoreRequest("Name a number.", "", (5, 6), (2,), answer="two"),
    )

    def entry(self) -> Any:
        found = Registry.load().reward_models.get(self.reward)
        assert found is not None, f"no plugin brings the reward model '{self.reward}'"
        return found

    def chosen(self) -> list[str]:
        return [*rollout_stage(), f"reward={self.reward}"]

    def prefix(self) -> str:
        return "reward"

    @pytest.fixture(scope="class")
    @classmethod
    def scorer(cls) -> Iterator[Any]:
        """The reward model behind its guard, as a run has it."""
        kit = cls()
        from core.scoring.guarded import GuardedScorer, ScorerContext

        config, registry, _ = typed_config([*kit.chosen(), *kit.words])
        specs = {name: entry.spec for name, entry in registry.reward_models.items()}
        made = GuardedScorer(kit.entry().spec, config.reward, ScorerContext(specs=specs))
        yield made
        made.close()

    def test_one_finite_score_for_each_request(self, scorer: Any) -> None:
        scores = scorer.score(list(self.requests))
        assert [score.error for score in scores] == [None] * len(self.requests)
        assert all(math.isfinite(score.value) for score in scores)

    def test_a_score_does_not_depend_on_its_neighbours(self, scorer: Any) -> None:
        """Nor on how often it was asked for."""
        together = [score.value for score in scorer.score(list(self.requests))]
        apart = [scorer.score([request])[0].value for request in reversed(self.requests)]
        assert together == pytest.approx(apart[::-1])

    def test_nothing_to_score_is_no_error(self, scorer: Any) -> None:
        assert scorer.score([]) == []

    def test_a_policy_trains_on_it(self, stage_runner: StageRunner) -> None:
        """One step of a stage with rollouts; no score failed."""
        outcome = stage_runner(
            *self.chosen(), *self.words, "stage.max_steps=1", "stage.batch_size=2", "stage.group_size=2",
            "stage.max_new_tokens=4",
        ).assert_ok()  # fmt: skip
        assert outcome.result["reward_errors"] == 0
        assert math.isfinite(outcome.steps[0]["reward"])
