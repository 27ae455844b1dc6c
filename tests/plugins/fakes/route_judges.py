"""Judges that misbehave when the completion says so, for runs that must go on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from core.api import RewardConfig, RewardSpec, Score, hookimpl


@dataclass
class OddConfig(RewardConfig):
    """Right is what holds the gold answer."""


class Odd:
    def score(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        if "hang" in request.completion:
            time.sleep(600)
        if "raise" in request.completion:
            raise RuntimeError("told to fail")
        if "nonsense" in request.completion:
            return "yes"
        if "exit" in request.completion:
            os._exit(3)
        return Score(float((request.answer or "") in request.completion))


def build(config, context):
    return Odd()


@hookimpl
def register_reward_models():
    return [RewardSpec("odd", OddConfig, "route_judges:build", isolated=True, needs_answer=True)]
