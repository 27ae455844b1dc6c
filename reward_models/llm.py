"""A model as judge, in this process: the policy, or another model, through a rollout engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core.api import Message, RolloutEngine, Sampling, Score, ScorerContext, ScoreRequest
from reward_models import LlmConfig
from reward_models.verdict import question_of, verdict_score

VERDICTS = ("Verdict: yes", "Verdict: no")


class LlmJudge:
    """The scorer. Without `max_new_tokens` the score is the probability of "Verdict: yes" against "Verdict: no" as the
    reply, which needs no generation and always gives a verdict; else the model writes, and the score is what its last
    verdict says, 1 or 0. A reply without verdict is an error of that request alone."""

    def __init__(self, config: LlmConfig, context: ScorerContext) -> None:
        self.config, self.parts = config, context.parts
        self.guest: Any = None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order."""
        engine, codec, room = self._engine()
        questions = [question_of(request, self.config.prompt) for request in requests]
        prompts = codec.prompts([[Message("user", question)] for question in questions])
        endings = codec.completions(VERDICTS)
        longest = self.config.max_new_tokens or max(map(len, endings))
        fits = [len(prompt) + longest <= room for prompt in prompts]
        asked = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        if self.config.max_new_tokens:
            scores = iter(self._written(engine, codec, asked))
        else:
            scores = iter(_weighed(engine, asked, endings))
        return [next(scores) if fit else Score(None, error="the question is too long for the judge") for fit in fits]

    def _written(self, engine: RolloutEngine, codec: Any, prompts: Sequence[Sequence[int]]) -> list[Score]:
        sampling = Sampling(self.config.max_new_tokens, temperature=0.0, stop_token_ids=codec.ends)
        replies = [codec.said(rollout.completion_ids).answer for rollout in engine.generate(prompts, sampling)]
        return [verdict_score(reply) for reply in replies]

    def _engine(self) -> tuple[RolloutEngine, Any, int]:
        """Engine, codec, and the longest sequence in tokens."""
        if not self.config.source:
            start = self.parts.models.start
            return self.parts.engine(), start.codec, start.max_length
        if self.guest is None:
            self.guest = self.parts.guest(self.config.source)
        return self.guest.engine, self.guest.codec, self.guest.max_sequence_tokens

    def close(self) -> None:
        """Give the other model's memory back."""
        if self.guest is not None:
            self.guest.close()
            self.guest = None


def _weighed(engine: RolloutEngine, prompts: Sequence[Sequence[int]], endings: Sequence[Sequence[int]]) -> list[Score]:
    """p(yes) / (p(yes) + p(no)) of the two replies as a whole."""
    scored = iter(engine.score([[*prompt, *ending] for prompt in prompts for ending in endings]))
    scores = []
    for _ in prompts:
        yes, no = (math.fsum(next(scored)[-len(ending) :]) for ending in endings)
        scores.append(Score(1 / (1 + math.exp(min(no - yes, 700.0)))))
    return scores


def build(config: LlmConfig, context: ScorerContext) -> LlmJudge:
    """The judge of a run."""
    return LlmJudge(config, context)
