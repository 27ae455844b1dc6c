"""A reward model without weights: the share of wanted words in a completion, less a fine for each unwanted one."""

import re
from dataclasses import dataclass, field

from core.api import ConfigError, RewardConfig, RewardSpec, Score, hookimpl, number

PREFTUNE_API = 2


@dataclass
class KeywordsConfig(RewardConfig):
    """Settings of `reward=keywords`."""

    wanted: list[str] = field(default_factory=list)
    """Words that each add their share of 1 where they occur."""
    unwanted: list[str] = field(default_factory=list)
    """Words that each take `fine` where they occur."""
    fine: float = number(0.5, at_least=0)
    """Taken for each unwanted word."""

    def check(self):
        """Asked before a run starts."""
        if not self.wanted and not self.unwanted:
            raise ConfigError("reward=keywords has no words", "reward.wanted", "set reward.wanted=[WORD,…]")


class Keywords:
    def __init__(self, config):
        self.config = config

    def score(self, requests):
        return [self._score(set(re.findall(r"\w+", request.completion.lower()))) for request in requests]

    def _score(self, words):
        found = [word.lower() in words for word in self.config.wanted]
        share = sum(found) / max(len(found), 1)
        fine = self.config.fine * sum(word.lower() in words for word in self.config.unwanted)
        return Score(share - fine, parts={"wanted": share, "fine": fine})


def build(config, context):
    return Keywords(config)


@hookimpl
def register_reward_models():
    return [RewardSpec("keywords", KeywordsConfig, "acme_keywords:build", "wanted words, less unwanted ones")]
