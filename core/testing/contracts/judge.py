"""What every judge must keep: a reward model that is read through a threshold."""

from __future__ import annotations

from typing import Any, ClassVar

from core.api import ScoreRequest
from core.config.typed import typed_config
from core.testing.contracts.reward import RewardContract


class JudgeContract(RewardContract):
    """A reward model that tells right answers from wrong ones."""

    right: ClassVar[tuple[ScoreRequest, ...]] = ()
    wrong: ClassVar[tuple[ScoreRequest, ...]] = ()

    def test_the_threshold_parts_right_from_wrong(self, scorer: Any) -> None:
        """With the threshold that the plugin's own settings have."""
        config, _, _ = typed_config([*self.chosen(), *self.words])
        assert self.right and self.wrong, "give answers that are right and answers that are wrong"
        for requests, right in ((self.right, True), (self.wrong, False)):
            for request, score in zip(requests, scorer.score(list(requests)), strict=True):
                assert (score.value >= config.reward.threshold) is right, (request.completion, score)

    def test_it_can_be_chosen_as_the_judge(self) -> None:
        """Under the same name and with the same settings."""
        words = [word.replace("reward.", "judge.", 1) for word in self.words]
        config, _, _ = typed_config(["stage=sft", f"judge={self.reward}", *words])
        assert config.judge.name == self.reward and type(config.judge) is self.entry().spec.config
