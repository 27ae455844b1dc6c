"""The learned reward model at work: score of the run's `reward_model` role at each completion's last token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from core.api import DataError, ModelError, Score, ScorerContext, ScoreRequest
from reward_models import LearnedConfig


class BradleyTerry:
    """Scores token ids as they were sampled; nothing is tokenised again, unless the reward model's vocabulary or chat
    template is another than the policy's: it then reads the texts, written in its own.

    Score: unbounded, about 0 for a completion like the chosen ones of the reward model's training set.
    """

    def __init__(self, config: LearnedConfig, context: ScorerContext) -> None:
        self.config, self.parts = config, context.parts

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request; completions of one prompt share its computation.

        Raises ModelError when the run has no reward model; an empty completion is an error of that request alone.
        """
        import torch

        from core.torch_api import PromptGroup, pack, split_by_tokens

        model = self.parts.models.reward_model
        if model is None:
            raise ModelError("the run has no reward model", "reward=learned", "set reward.source=FOLDER")
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        scores = [Score(None, error="the completion is empty")] * len(requests)
        requests = list(requests)
        for index, request in enumerate(requests):
            if request.completion_ids:
                try:
                    requests[index] = self._read(request)
                except DataError as error:
                    scores[index] = Score(None, error=error.what)
                else:
                    groups[requests[index].prompt_ids].append(index)

        def tokens(group: list[int]) -> int:
            return len(requests[group[0]].prompt_ids) + sum(len(requests[i].completion_ids) for i in group)

        for part in split_by_tokens(list(groups.values()), tokens, self.config.batch_tokens):
            row = pack(
                [
                    PromptGroup(requests[group[0]].prompt_ids, [requests[i].completion_ids for i in group])
                    for group in part
                ]
            )
            with torch.no_grad():
                values = model(row).tolist()
            for index, value in zip((i for group in part for i in group), values, strict=True):
                scores[index] = Score(value)
        return scores

    def _read(self, request: ScoreRequest) -> ScoreRequest:
        """The request as the reward model reads it. Raises DataError when its chat template refuses the dialogue."""
        from core.torch_api import encoded_again

        start = self.parts.models.start
        if start.reward_codec is None:
            return request
        return encoded_again(request, start.reward_codec, request.completion_ids[-1] in start.codec.ends)


def build(config: LearnedConfig, context: ScorerContext) -> BradleyTerry:
    """The scorer of a run."""
    return BradleyTerry(config, context)
