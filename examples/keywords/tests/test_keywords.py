"""Scores by hand, and the contract of every reward model."""

import pytest
from acme_keywords import KeywordsConfig, build

from core.api import ConfigError, ScoreRequest
from core.testing import command
from core.testing.contracts import RewardContract


class TestKeywords(RewardContract):
    reward = "keywords"
    words = ("reward.wanted=[seven,number]", "reward.unwanted=[say]")


@pytest.mark.parametrize(
    ("completion", "score"), [("Seven!", 0.5), ("a number: seven", 1.0), ("I say so", -0.25), ("", 0.0)]
)
def test_scores(completion, score):
    scorer = build(KeywordsConfig(wanted=["seven", "number"], unwanted=["Say"], fine=0.25), None)
    assert scorer.score([ScoreRequest("", completion)])[0].value == score


def test_words_must_be_given():
    with pytest.raises(ConfigError, match="no words"):
        KeywordsConfig().check()
    outcome = command("stage=rlhf", "algorithm=grpo", "reward=keywords", "reward.fine=-1")
    assert outcome.code == 2 and "reward.fine" in outcome.err
