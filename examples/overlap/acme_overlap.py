"""A judge, and so a reward too: right is a completion with enough of the gold answer's words, and few others."""

from dataclasses import dataclass

from core.api import RewardConfig, RewardSpec, Score, hookimpl, words_of

PREFTUNE_API = 2


@dataclass
class OverlapConfig(RewardConfig):
    """Settings of `judge=overlap`."""

    threshold: float = 0.7
    """F1 of the words from which a completion is right."""


def f1(completion, answer):
    said, wanted = set(words_of(completion)), set(words_of(answer))
    return 2 * len(said & wanted) / max(len(said) + len(wanted), 1)


class Overlap:
    def score(self, requests):
        return [Score(f1(request.completion, request.answer)) for request in requests]


def build(config, context):
    return Overlap()


@hookimpl
def register_reward_models():
    return [
        RewardSpec("overlap", OverlapConfig, "acme_overlap:build", "F1 of words with the answer", needs_answer=True)
    ]
