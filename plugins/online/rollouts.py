"""One iteration's rollouts as online algorithms need them: sampled, scored, laid out in packed rows once.

The packed rows made here serve every forward pass of the iteration: old log-probabilities, reference, values, and all
inner epochs. So in the first update the policy repeats the very computation that gave the old log-probabilities, and
each ratio is exactly 1. An algorithm with a single update an iteration takes them from that update's own forward pass
(`settled` in the loss); the others from a pass of their own (`with_old_logprobs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from core.api import Evaluation, Limit, Rollout, Sampling, Score, ScoreRequest, TrainingError
from core.torch_api import (
    Models,
    Packed,
    Prompt,
    PromptGroup,
    StageRun,
    heldout_prompts,
    pack,
    score_heldout,
    score_request,
    shown,
    split_by_tokens,
)
from plugins.online import KlEstimator, OnlineConfig
from plugins.online.estimators import kl_estimate

__all__ = [
    "RolloutRow",
    "Rollouts",
    "Settled",
    "Size",
    "drift",
    "evaluate_online",
    "kl_on_heldout",
    "limits",
    "minibatches",
    "sample_rollouts",
    "with_old_logprobs",
]

_SAMPLE_ROWS = 4
"""Rollouts shown in the sample table of each iteration."""


@dataclass
class RolloutRow:
    """A packed row with C completions of M tokens in all; tensors are float32 on the policy's device.

    score_C: score, without the KL. reference_logprob_M, engine_logprob_M: nats, at the sampling temperature.
    update: number of the minibatch that the row belongs to.
    old_logprob_M: nats, under the policy that sampled, as the trainer computes it; None until they are known.
    weight_M: truncated importance weight p_trainer / p_engine, 1 where it is off; known with the old ones.
    extra: filled in by the algorithm.
    """

    packed: Packed
    score_C: Tensor
    reference_logprob_M: Tensor
    engine_logprob_M: Tensor
    update: int = 0
    old_logprob_M: Tensor | None = None
    weight_M: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def old(self) -> Tensor:
        """`old_logprob_M`, where it is known."""
        assert self.old_logprob_M is not None
        return self.old_logprob_M

    @property
    def weight(self) -> Tensor:
        """`weight_M`, where it is known."""
        assert self.weight_M is not None
        return self.weight_M

    @property
    def lengths_C(self) -> Tensor:
        """Tokens of each completion."""
        return torch.bincount(self.packed.completion_M, minlength=self.packed.completions)


@dataclass(frozen=True)
class Size:
    """Of a set of rows: completion tokens and completions, the denominators of its means."""

    tokens: int
    completions: int

    @classmethod
    def of(cls, rows: Sequence[RolloutRow]) -> Size:
        """Both, counted."""
        return cls(sum(len(row.packed.targets_M) for row in rows), sum(row.packed.completions for row in rows))


@dataclass
class Rollouts:
    """One iteration: its rows, what is known of it without a forward pass of the policy, rows for the sample table."""

    rows: list[RolloutRow]
    metrics: dict[str, float]
    samples: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows, prompts included."""
        return sum(row.packed.tokens for row in self.rows)


@dataclass(frozen=True)
class Settled:
    """A row whose old log-probabilities are known, and its share of the iteration's metrics: `metrics` of all rows add
    up, of `peaks` the largest counts."""

    row: RolloutRow
    metrics: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)


def settled(row: RolloutRow, old_M: Tensor, entropy_M: Tensor, size: Size, importance_cap: float | None) -> Settled:
    """The row with its old log-probabilities and importance weights.

    old_M, entropy_M: of the policy that sampled, nats, detached. size: of the iteration. importance_cap: most that a
    weight may be; None leaves them at 1.
    Metrics: `kl` and `kl_k3` to the reference in nats a completion, `entropy` and `engine_gap` in nats a token; peak:
    `engine_gap_max`.
    """
    gap = old_M - row.engine_logprob_M
    weight = gap.exp().clamp(max=importance_cap) if importance_cap is not None else torch.ones_like(gap)
    metrics = {
        "kl": kl_estimate(old_M, row.reference_logprob_M, KlEstimator.k1).sum().item() / size.completions,
        "kl_k3": kl_estimate(old_M, row.reference_logprob_M, KlEstimator.k3).sum().item() / size.completions,
        "entropy": entropy_M.sum().item() / size.tokens,
        "engine_gap": gap.abs().sum().item() / size.tokens,
    }
    known = replace(row, old_logprob_M=old_M, weight_M=weight)
    return Settled(known, metrics, {"engine_gap_max": gap.abs().max().item()})


def with_old_logprobs(run: StageRun, models: Models, rollouts: Rollouts, cfg: OnlineConfig) -> Rollouts:
    """The rollouts with the old log-probabilities of all rows and their metrics, by a forward pass of their own."""
    size = Size.of(rollouts.rows)
    rows, metrics = [], dict(rollouts.metrics)
    for row in rollouts.rows:
        with torch.no_grad(), run.log.timed("old log-probabilities"):
            old, entropy = models.call("policy", row.packed, cfg.temperature, want_entropy=True)
        one = settled(row, old, entropy, size, cfg.importance_cap)
        rows.append(one.row)
        for name, value in one.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
        for name, value in one.peaks.items():
            metrics[name] = max(metrics.get(name, 0.0), value)
    return Rollouts(rows, metrics, rollouts.samples)


def sample_rollouts(run: StageRun, models: Models, prompts: Sequence[Prompt], step: int, cfg: OnlineConfig) -> Rollouts:
    """Sample `group_size` completions for each prompt, score them, lay them out in rows.

    step: of the run, from 0; seeds the sampling. A prompt of which any completion could not be scored is left out, so
    that groups stay complete, and counted.
    Raises TrainingError when no prompt is left.
    """
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=cfg.top_p, n=cfg.group_size,
        seed=run.seed_for("rollout", step), stop_token_ids=models.codec.ends,
    )  # fmt: skip
    with run.log.timed("rollout"):
        rollouts = run.parts.engine().generate([prompt.ids for prompt in prompts], sampling)
    with run.log.timed("score"):
        requests = [
            score_request(
                prompts[rollout.prompt_index].record, models.codec.said(rollout.completion_ids),
                rollout.prompt_ids, rollout.completion_ids,
            )
            for rollout in rollouts
        ]  # fmt: skip
        scores, metrics = _score(run, requests)
    groups = []
    for start in range(0, len(rollouts), cfg.group_size):
        members = range(start, start + cfg.group_size)
        if all(scores[i].value is not None and rollouts[i].completion_ids for i in members):
            groups.append(list(members))
    if not groups:
        raise TrainingError(
            "no group of completions could be scored", f"step {step + 1}", "see reward errors in log.txt"
        )
    kept = [i for group in groups for i in group]
    metrics |= {
        "groups_dropped": float(len(prompts) - len(groups)),
        "completion_tokens": sum(len(rollouts[i].completion_ids) for i in kept) / len(kept),
        "finished": sum(rollouts[i].finished for i in kept) / len(kept),
        "sync_difference": run.parts.sync_difference,
    }
    samples = [
        {
            "index": i,
            **shown(requests[i]),
            "reward": scores[i].value,
        }
        for i in kept[:_SAMPLE_ROWS]
    ]
    return Rollouts(_laid_out(run, models, rollouts, scores, groups, cfg), metrics, samples)


def _score(run: StageRun, requests: Sequence[ScoreRequest]) -> tuple[list[Score], dict[str, float]]:
    """Scores of the run's reward, and metrics; the true score beside it where there is one."""
    reward = run.parts.reward()
    assert reward is not None
    scores = reward.score(requests)
    valid = [score.value for score in scores if score.value is not None]
    if not valid:
        raise TrainingError(
            f"every reward of this iteration is an error; the first: {scores[0].error}",
            f"reward={run.cfg.reward.name}",
            "mend the reward model or the records it scores",
        )
    metrics = {"reward": sum(valid) / len(valid), "reward_errors": float(len(scores) - len(valid))}
    true = run.parts.true_scorer()
    if true is not None and true is not reward and any(request.answer for request in requests):
        known = [score.value for score in true.score(requests) if score.value is not None]
        if known:
            metrics["score"] = sum(known) / len(known)
    return scores, metrics


def _laid_out(
    run: StageRun,
    models: Models,
    rollouts: Sequence[Rollout],
    scores: Sequence[Score],
    groups: Sequence[list[int]],
    cfg: OnlineConfig,
) -> list[RolloutRow]:
    """Groups of completions as packed rows; rows never cross a minibatch's border, and groups never a row's."""

    def tokens(group: list[int]) -> int:
        return len(rollouts[group[0]].prompt_ids) + sum(len(rollouts[i].completion_ids) for i in group)

    rows: list[RolloutRow] = []
    per_update = -(-len(groups) // cfg.minibatches)
    for first in range(0, len(groups), per_update):
        for part in split_by_tokens(groups[first : first + per_update], tokens, cfg.micro_batch_tokens):
            order = [i for group in part for i in group]
            packed = pack(
                [
                    PromptGroup(rollouts[group[0]].prompt_ids, [rollouts[i].completion_ids for i in group])
                    for group in part
                ]
            ).to(models.start.device)
            with run.log.timed("reference log-probabilities"):
                reference = models.reference_logprobs(packed, cfg.temperature)
            engine = [value for i in order for value in rollouts[i].logprobs]
            scored = [scores[i].value if rollouts[i].finished else cfg.missing_eos_score for i in order]
            rows.append(
                RolloutRow(
                    packed, reference.new_tensor(scored), reference, reference.new_tensor(engine), first // per_update
                )
            )
    return rows


def minibatches(rows: Sequence[RolloutRow], inner_epochs: int, seed: int) -> list[list[RolloutRow]]:
    """Rows by update, in a fresh shuffle for each inner epoch; the first epoch keeps its order."""
    by_update: dict[int, list[RolloutRow]] = {}
    for row in rows:
        by_update.setdefault(row.update, []).append(row)
    batches = list(by_update.values())
    updates = list(batches)
    for epoch in range(1, inner_epochs):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed + epoch))
        updates += [batches[i] for i in order.tolist()]
    return updates


def drift(row: RolloutRow, logprob_M: Tensor, tokens: int) -> float:
    """The row's share of how far the policy has moved within an iteration: k3 estimate of the KL from the policy that
    sampled to the policy now, in nats a token, of an update of `tokens` completion tokens."""
    return kl_estimate(row.old, logprob_M.detach(), KlEstimator.k3).sum().item() / tokens


def limits(cfg: OnlineConfig) -> dict[str, Limit]:
    """The brakes of an iteration, as fields of core.api.Batch; none where their settings are 0."""
    found = {}
    if cfg.stop_kl:
        found["skip_rest"] = Limit("approx_kl", cfg.stop_kl, "stage.stop_kl")
    if cfg.max_kl:
        found["stop"] = Limit("kl", cfg.max_kl, "stage.max_kl")
    return found


def evaluate_online(run: StageRun, models: Models, step: int, cfg: OnlineConfig) -> Evaluation:
    """Scored held-out completions, and the KL to the reference once training has begun."""
    found = score_heldout(run, models)
    if step:
        found.metrics |= kl_on_heldout(run, models, cfg)
    return found


def kl_on_heldout(run: StageRun, models: Models, cfg: OnlineConfig) -> dict[str, float]:
    """`kl_to_reference`: k1 estimate in nats a completion, on one sampled completion for each held-out prompt."""
    held = heldout_prompts(run, models.codec)
    if not held:
        return {}
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, seed=run.seed_for("kl"),
        stop_token_ids=models.codec.ends,
    )  # fmt: skip
    drawn = run.parts.engine().generate([ids for _, ids in held], sampling)
    rollouts = [item for item in drawn if item.completion_ids]
    total = 0.0
    for part in split_by_tokens(
        rollouts, lambda item: len(item.prompt_ids) + len(item.completion_ids), cfg.micro_batch_tokens
    ):
        packed = pack([PromptGroup(item.prompt_ids, [item.completion_ids]) for item in part]).to(models.start.device)
        with torch.no_grad():
            ours, _ = models.call("policy", packed, cfg.temperature)
        total += (ours - models.reference_logprobs(packed, cfg.temperature)).sum().item()
    return {"kl_to_reference": total / len(rollouts)}
