"""Token weights of NLFT (arXiv:2412.20382) as its released code computes them, with that code's mistakes behind the
switches of NlftConfig.

One answer of T tokens is scored under up to three conditions: base (the prompt alone), judge (the prompt asks for an
answer with the weaknesses that the judgement names) and correct (the gold answer is at hand). p is a probability given
the condition and the earlier tokens of the answer. Every weight is a number without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plugins.nlft import ClusterMeasure, NlftConfig

CERTAIN = 1e-6
"""1 - p is never taken for smaller than about this."""


@dataclass
class Annotation:
    """Weights of the T tokens of one answer, float32 [T] or bool [T].

    pull_T: weight of -log p(base). push_T: weight of -log(1 - p(base)).
    seed_T: salient tokens of a right answer, negative tokens of a wrong one. joined_T: their clustered neighbours.
    """

    pull_T: Tensor
    push_T: Tensor
    seed_T: Tensor
    joined_T: Tensor

    @property
    def shown_T(self) -> Tensor:
        """What the heat map shows: above zero where the token is made likelier, below where less likely."""
        return self.pull_T - self.push_T


def unlikelihood(logprob: Tensor) -> Tensor:
    """-log(1 - p) from log p, elementwise, in fp32.

    p is scaled by 1 - CERTAIN, so that the value stays below 14 and the gradient p / (1 - p) below 1 / CERTAIN: a
    token that is certain is still pushed down, where a clamp would cut its gradient off.
    """
    return -torch.log1p(-(logprob.float().exp() * (1.0 - CERTAIN)))


def positive_weights(correct_T: Tensor, joined_T: Tensor, cfg: NlftConfig) -> Tensor:
    """s of a right answer's tokens from p(correct), [T]: 1 + ((p - tau) / (1 - tau))^5 where p > tau, else
    (p / tau)^0.3 for clustered tokens and (p / tau)^0.6 for others."""
    beyond = ((correct_T - cfg.tau) / (1.0 - cfg.tau)).clamp(min=0.0)
    below = (correct_T / cfg.tau).clamp(max=1.0)
    power_T = torch.where(joined_T, cfg.clustered_power, cfg.other_power)
    return torch.where(correct_T > cfg.tau, 1.0 + beyond**cfg.salient_power, below**power_T)


def negative_tokens(judge_T: Tensor, base_T: Tensor, correct_T: Tensor, cfg: NlftConfig) -> Tensor:
    """The negative set of a wrong answer, bool [T]: tokens that the judgement makes likelier."""
    return (
        (judge_T > cfg.ratio * base_T) & (judge_T > cfg.ratio * correct_T) & (judge_T > cfg.min_prob)
    )  # products, for a probability of zero


def push_weights(judge_T: Tensor, base_T: Tensor, cfg: NlftConfig) -> Tensor:
    """w = 2 sigmoid(p(judge) / p(base) - theta) of negative tokens, [T]."""
    return 2.0 * torch.sigmoid(judge_T / base_T.clamp(min=torch.finfo(torch.float32).tiny) - cfg.theta)


def clusters(state_Td: Tensor, seed_T: Tensor, cfg: NlftConfig) -> Tensor:
    """Neighbours that join a seed, bool [T], seeds left out.

    From each seed to the left, then to the right, tokens join while their measure with the cluster's mean state
    exceeds the threshold.
    """
    states, seeds = state_Td.float().cpu().numpy(), seed_T.cpu().numpy()
    norms = np.linalg.norm(states, axis=1) + 1e-12
    joined = np.zeros(len(states), dtype=bool)
    for seed in np.flatnonzero(seeds):
        total = states[seed].copy()
        for way in (range(seed - 1, -1, -1), range(seed + 1, len(states))):
            for place in way:
                # The mean's direction is the sum's.
                measure = float(total @ states[place]) / (float(np.linalg.norm(total)) + 1e-12) / float(norms[place])
                if cfg.cluster_measure is ClusterMeasure.distance:
                    measure = 1.0 - measure
                if not measure > cfg.cluster_threshold:
                    break
                joined[place] = True
                total += states[place]
    return torch.from_numpy(joined & ~seeds)


def _joined(state_Td: Tensor | None, seed_T: Tensor, cfg: NlftConfig) -> Tensor:
    return torch.zeros_like(seed_T) if state_Td is None else clusters(state_Td, seed_T, cfg)


def annotate_right(correct_T: Tensor, state_Td: Tensor | None, cfg: NlftConfig) -> Annotation:
    """Weights of a right answer from log p(correct) [T]. state_Td: hidden states of the base row, None without
    clustering."""
    prob_T = correct_T.detach().float().cpu().exp()
    seed_T = prob_T > cfg.tau
    joined_T = _joined(state_Td, seed_T, cfg)
    return Annotation(positive_weights(prob_T, joined_T, cfg), torch.zeros_like(prob_T), seed_T, joined_T)


def annotate_wrong(
    judge_T: Tensor, base_T: Tensor, correct_T: Tensor, state_Td: Tensor | None, cfg: NlftConfig
) -> Annotation:
    """Weights of a wrong answer from its log-probabilities under the three conditions, [T] each."""
    judge, base, correct = (values.detach().float().cpu().exp() for values in (judge_T, base_T, correct_T))
    seed_T = negative_tokens(judge, base, correct, cfg)
    joined_T = _joined(state_Td, seed_T, cfg)
    push_T = torch.where(seed_T, push_weights(judge, base, cfg), 0.0)
    pull_T = torch.where(seed_T | joined_T, 0.0, correct.sqrt())
    if seed_T.float().mean() > cfg.max_negative_share:
        pull_T = torch.zeros_like(pull_T)
    return Annotation(pull_T, push_T, seed_T, joined_T)


def annotate_spans(marked_T: Tensor, correct_T: Tensor | None, cfg: NlftConfig) -> Annotation:
    """Weights of an answer whose errors are marked: unlikelihood on the marked tokens, the rest as in a wrong answer
    (weight sqrt(p(correct)), or 1 where there is no gold answer). Nothing has to be inferred, so neither clustering
    nor the rule about the share applies."""
    rest_T = torch.ones(len(marked_T)) if correct_T is None else correct_T.detach().float().cpu().exp().sqrt()
    push_T = torch.where(marked_T, torch.tensor(cfg.span_weight), torch.tensor(0.0))
    return Annotation(torch.where(marked_T, 0.0, rest_T), push_T, marked_T, torch.zeros_like(marked_T))
