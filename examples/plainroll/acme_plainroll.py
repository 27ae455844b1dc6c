"""A rollout engine: the policy's own module, one completion at a time, the whole sequence anew for each token."""

from core.api import EngineSpec, Rollout, RolloutConfig, hookimpl

PREFTUNE_API = 2


class Plain:
    name = "plain"

    def __init__(self, config, start, module):
        self.module, self.device, self.version = module, start.device, 0

    def logits(self, ids):
        import torch

        with torch.no_grad():
            found = self.module(input_ids=torch.tensor([ids], device=self.device)).logits[0]
        return found.float().cpu()

    def generate(self, prompts, sampling):
        return [self.one(list(ids), index, sampling, sampling.seed * 100_003 + index * sampling.n + number)
                for index, ids in enumerate(prompts) for number in range(sampling.n)]  # fmt: skip

    def one(self, prompt, index, sampling, seed):
        import torch

        generator, completion, logprobs = torch.Generator().manual_seed(seed), [], []
        while len(completion) < sampling.max_new_tokens:
            logprobs_V = (self.logits([*prompt, *completion])[-1] / (sampling.temperature or 1.0)).log_softmax(-1)
            drawn = torch.multinomial(logprobs_V.exp(), 1, generator=generator)
            completion.append(int(drawn if sampling.temperature else logprobs_V.argmax()))
            logprobs.append(logprobs_V[completion[-1]].item())
            if completion[-1] in sampling.stop_token_ids:
                return Rollout(prompt, completion, logprobs, True, self.version, index)
        return Rollout(prompt, completion, logprobs, False, self.version, index)

    def score(self, sequences):
        rows = [self.logits(list(ids))[:-1].log_softmax(-1) for ids in sequences]
        return [[row[place, token].item() for place, token in enumerate(ids[1:])]
                for row, ids in zip(rows, sequences, strict=True)]  # fmt: skip

    def sync(self, weights, version):
        self.version = version  # the policy's own module samples

    def close(self):
        """Nothing to give back."""


@hookimpl
def register_rollout_engines():
    summary = "one completion at a time, without top_k and top_p"
    return [EngineSpec("plain", RolloutConfig, "acme_plainroll:Plain", summary, shares_policy=True, priority=-1)]
