"""One iteration's rollouts as the online algorithms need them: sampled, scored, laid out in packed rows once.

The packed rows made here serve every forward pass of the iteration: old log-probabilities, reference, values, and all
inner epochs. So in the first update the policy repeats the very computation that gave the old log-probabilities, and
each ratio is exactly 1. An algorithm with a single update an iteration, that needs them in the loss alone, takes them
from the update's own forward pass (`sample_rollouts`); the others from a pass of their own (`collect_rollouts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.api import Batch, Rollout, Sampling, ScoreRequest, TrainingError
from core.torch_api import Models, Packed, Prompt, PromptGroup, StageRun, pack, split_by_tokens, step_items
from plugins.shared import KlEstimator
from plugins.shared.estimators import kl_estimate

_SAMPLE_ROWS = 4
"""Rollouts shown in the sample table of each iteration."""


@dataclass
class SampledRow:
    """A packed row with C completions of M tokens in all; tensors are float32 on the policy's device.

    score_C: score, without the KL. reference_logprob_M, engine_logprob_M: nats, at the sampling temperature.
    update: number of the minibatch that the row belongs to.
    """

    packed: Packed
    score_C: Tensor
    reference_logprob_M: Tensor
    engine_logprob_M: Tensor
    update: int = 0


@dataclass
class RolloutRow:
    """A packed row whose old log-probabilities are known.

    score_C, reference_logprob_M: as in SampledRow. old_logprob_M: nats, under the policy that sampled, as the trainer
    computes it. weight_M: truncated importance weight p_trainer / p_engine, 1 where it is off.
    extra: filled in by the algorithm.
    """

    packed: Packed
    score_C: Tensor
    old_logprob_M: Tensor
    reference_logprob_M: Tensor
    weight_M: Tensor
    update: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lengths_C(self) -> Tensor:
        """Tokens of each completion."""
        return torch.bincount(self.packed.completion_M, minlength=self.packed.completions)


class Iteration:
    """What the policy that sampled an iteration is like, known row by row: `tokens` completion tokens in `completions`
    completions."""

    def __init__(self, run: StageRun, rows: Sequence[SampledRow]) -> None:
        self.run = run
        self.tokens = sum(len(row.packed.targets_M) for row in rows)
        self.completions = sum(row.packed.completions for row in rows)
        self._kl = self._longest_gap = 0.0
        self._seen = 0

    def known(self, row: SampledRow, old_M: Tensor, entropy_M: Tensor) -> tuple[RolloutRow, dict[str, float]]:
        """The row with its old log-probabilities, and its share of the iteration's metrics: shares of all rows add up
        to the metric. Lets the run end after this iteration when the KL to the reference exceeds stage.max_kl."""
        cfg = self.run.cfg.stage
        gap = old_M - row.engine_logprob_M
        weight = gap.exp().clamp(max=cfg.importance_cap) if cfg.importance_cap > 0 else torch.ones_like(gap)
        longer = max(gap.abs().max().item() - self._longest_gap, 0.0)
        self._longest_gap += longer
        shares = {
            "kl": kl_estimate(old_M, row.reference_logprob_M, KlEstimator.k1).sum().item() / self.completions,
            "kl_k3": kl_estimate(old_M, row.reference_logprob_M, KlEstimator.k3).sum().item() / self.completions,
            "entropy": entropy_M.sum().item() / self.tokens,
            "engine_gap": gap.abs().sum().item() / self.tokens,
            "engine_gap_max": longer,
        }
        self._kl += shares["kl"]
        self._seen += len(old_M)
        if self._seen == self.tokens and cfg.max_kl and self._kl > cfg.max_kl:
            self.run.stop_reason = f"the KL to the reference is {self._kl:.2f} nats, over stage.max_kl={cfg.max_kl}"
        known = RolloutRow(row.packed, row.score_C, old_M, row.reference_logprob_M, weight, row.update)
        return known, shares


@dataclass
class Drift:
    """How far the policy has moved within an iteration: k3 estimate of the KL from the policy that sampled to the
    policy now, in nats a token, added up over the rows of one update, which hold `tokens` completion tokens."""

    tokens: int
    kl: float = 0.0

    def add(self, run: StageRun, row: RolloutRow, logprob_M: Tensor) -> float:
        """The row's share of the KL. Skips the iteration's remaining updates when the sum exceeds stage.stop_kl."""
        nats = kl_estimate(row.old_logprob_M, logprob_M.detach(), KlEstimator.k3).sum().item()
        self.kl += nats / self.tokens
        if run.cfg.stage.stop_kl and self.kl > run.cfg.stage.stop_kl:
            run.skip_updates = True
        return nats / self.tokens


def _score(run: StageRun, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[list[Any], dict[str, float]]:
    """Scores of the run's reward, and metrics; the true score beside it where there is one."""
    requests = [
        ScoreRequest(
            prompt=prompts[rollout.prompt_index].record.prompt[-1].content,
            completion=run.codec.text(rollout.completion_ids),
            prompt_ids=tuple(rollout.prompt_ids),
            completion_ids=tuple(rollout.completion_ids),
            answer=prompts[rollout.prompt_index].record.answer,
            meta=dict(prompts[rollout.prompt_index].record.meta),
        )
        for rollout in rollouts
    ]
    reward = run.reward_scorer()
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
    true = run.true_scorer()
    if true is not None and true is not reward and any(request.answer for request in requests):
        known = [score.value for score in true.score(requests) if score.value is not None]
        if known:
            metrics["score"] = sum(known) / len(known)
    return scores, metrics


def collect_rollouts(run: StageRun, models: Models, data: Any, step: int) -> tuple[list[RolloutRow], Batch]:
    """`sample_rollouts`, and the old log-probabilities of all rows with their metrics."""
    sampled, batch = sample_rollouts(run, models, data, step)
    iteration = Iteration(run, sampled)
    rows = []
    assert models.policy is not None
    for row in sampled:
        with torch.no_grad(), run.timed("old log-probabilities"):
            old, entropy = models.policy(row.packed, run.cfg.stage.temperature, want_entropy=True)
        known, shares = iteration.known(row, old, entropy)
        rows.append(known)
        for name, value in shares.items():
            batch.metrics[name] = batch.metrics.get(name, 0.0) + value
    return rows, batch


def sample_rollouts(run: StageRun, models: Models, data: Any, step: int) -> tuple[list[SampledRow], Batch]:
    """Sample, score and lay out one iteration. Returns its rows and a batch without updates, with the metrics that
    need no forward pass of the policy.

    A prompt of which any completion could not be scored is left out whole, so that groups stay complete, and counted.
    Raises TrainingError when no prompt is left.
    """
    cfg = run.cfg.stage
    assert models.policy is not None
    prompts: list[Prompt] = step_items(data.train, step, cfg.batch_size, run.seed_for("order"), cfg.order)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=cfg.top_p, n=cfg.group_size,
        seed=run.seed_for("rollout", step), stop_token_ids=(run.codec.eos,),
    )  # fmt: skip
    with run.timed("rollout"):
        rollouts = run.engine().generate([prompt.ids for prompt in prompts], sampling)
    with run.timed("score"):
        scores, metrics = _score(run, prompts, rollouts)
    groups = []
    for start in range(0, len(rollouts), cfg.group_size):
        members = range(start, start + cfg.group_size)
        if all(scores[i].value is not None and rollouts[i].completion_ids for i in members):
            groups.append(list(members))
    if not groups:
        raise TrainingError(
            "no group of completions could be scored", f"step {step + 1}", "see reward errors in log.txt"
        )
    metrics["groups_dropped"] = float(len(prompts) - len(groups))

    def tokens(group: list[int]) -> int:
        return len(rollouts[group[0]].prompt_ids) + sum(len(rollouts[i].completion_ids) for i in group)

    rows: list[SampledRow] = []
    per_update = -(-len(groups) // cfg.minibatches)
    for first in range(0, len(groups), per_update):
        # Rows never cross a minibatch's border, and groups never a row's.
        for part in split_by_tokens(groups[first : first + per_update], tokens, cfg.micro_batch_tokens):
            order = [i for group in part for i in group]
            packed = pack(
                [
                    PromptGroup(rollouts[group[0]].prompt_ids, [rollouts[i].completion_ids for i in group])
                    for group in part
                ]
            ).to(run.device)
            with run.timed("reference log-probabilities"):
                reference = models.reference_logprobs(packed, cfg.temperature)
            engine = [value for i in order for value in rollouts[i].logprobs]
            scored = [scores[i].value if rollouts[i].finished else cfg.missing_eos_score for i in order]
            rows.append(
                SampledRow(
                    packed, reference.new_tensor(scored), reference, reference.new_tensor(engine), first // per_update
                )
            )
    kept = [i for group in groups for i in group]
    metrics |= {
        "completion_tokens": sum(len(rollouts[i].completion_ids) for i in kept) / len(kept),
        "finished": sum(rollouts[i].finished for i in kept) / len(kept),
        "sync_difference": run.sync_difference,
    }
    samples = [
        {
            "index": i,
            "prompt": prompts[rollouts[i].prompt_index].record.prompt[-1].content,
            "completion": run.codec.text(rollouts[i].completion_ids),
            "answer": prompts[rollouts[i].prompt_index].record.answer,
            "reward": scores[i].value,
        }
        for i in kept[:_SAMPLE_ROWS]
    ]
    count = sum(row.packed.tokens for row in rows)
    return rows, Batch(updates=[], metrics=metrics, tokens=count, samples=samples)


def updates_of(rows: list[RolloutRow], inner_epochs: int, seed: int) -> list[list[RolloutRow]]:
    """Minibatches in a fresh shuffle for each inner epoch; the first epoch keeps its order."""
    by_update: dict[int, list[RolloutRow]] = {}
    for row in rows:
        by_update.setdefault(row.update, []).append(row)
    minibatches = list(by_update.values())
    updates = list(minibatches)
    for epoch in range(1, inner_epochs):
        order = torch.randperm(len(minibatches), generator=torch.Generator().manual_seed(seed + epoch))
        updates += [minibatches[i] for i in order.tolist()]
    return updates


def kl_on_heldout(run: StageRun, models: Models) -> dict[str, float]:
    """`kl_to_reference`: k1 estimate in nats a completion, on one sampled completion for each held-out prompt."""
    cfg = run.cfg.stage
    records = run.eval_records()
    if not records or models.policy is None:
        return {}
    prompts = run.codec.prompts([record.prompt for record in records], [record.tools for record in records])
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, seed=run.seed_for("kl"),
        stop_token_ids=(run.codec.eos,),
    )  # fmt: skip
    rollouts = [item for item in run.engine().generate(prompts, sampling) if item.completion_ids]
    total = 0.0
    for part in split_by_tokens(
        rollouts, lambda item: len(item.prompt_ids) + len(item.completion_ids), cfg.micro_batch_tokens
    ):
        packed = pack([PromptGroup(item.prompt_ids, [item.completion_ids]) for item in part]).to(run.device)
        with torch.no_grad():
            ours, _ = models.policy(packed, cfg.temperature)
        total += (ours - models.reference_logprobs(packed, cfg.temperature)).sum().item()
    return {"kl_to_reference": total / len(rollouts)}
