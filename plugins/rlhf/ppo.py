"""PPO with a critic (Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022; details after arXiv:2403.17031).

One iteration:
1. sample completions from the policy, score each once; one that did not end by itself has a fixed low score;
2. per-token reward r_t = -kl_coef * KL_t(policy || reference), plus the score at the completion's last token;
3. values V_t of the state before each token from a separate value network, initialised from the reward model;
4. generalised advantages, whitened; returns = advantages + values;
5. inner epochs over minibatches: an update by the clipped value loss and one by the clipped policy loss, each a mean
   over the minibatch's tokens.

Departures: the score is given at the last token itself, not one after it (there is no padding to put it on); old
log-probabilities are the trainer's, and the gap to the engine's is corrected by a truncated importance weight.
Dropout is off throughout: models stay in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.api import Batch, LossOutput, hookimpl
from core.torch_api import (
    Models,
    StageData,
    StageRun,
    demonstrations,
    models_for_roles,
    prompts,
    score_heldout,
    step_items,
    weighted_nll,
    weighted_rows,
)
from plugins.rlhf.rollouts import Drift, RolloutRow, collect_rollouts, kl_on_heldout, updates_of
from plugins.shared.estimators import (
    adaptive_coefficient,
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    kl_estimate,
    whiten,
)


@dataclass
class Work:
    """One micro-batch: what to compute on a row; for policy and value the number of tokens in the whole minibatch, and
    for the policy how far it has moved by then."""

    kind: str
    """policy, value or ptx."""
    row: Any
    tokens: int = 0
    drift: Drift | None = None


def token_rewards(score_C: Tensor, kl_M: Tensor, completion_M: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * KL_t, and the score added at the last token of each completion, [M]."""
    rewards = -kl_coef * kl_M
    last = torch.ones_like(completion_M, dtype=torch.bool)
    last[:-1] = completion_M[1:] != completion_M[:-1]
    rewards[last] += score_C
    return rewards


def to_rectangle(values_M: Tensor, lengths_C: Tensor) -> Tensor:
    """Token values [M] of completions laid out one after another, as [C, T] padded with 0."""
    return nn.utils.rnn.pad_sequence(list(values_M.split(lengths_C.tolist())), batch_first=True)


class Ppo:
    """The algorithm. `kl_coef` moves when `kl_target` is set; it is saved and loaded with checkpoints."""

    def __init__(self) -> None:
        self.kl_coef: float | None = None
        self.demonstrations: Sequence[Any] = []

    @hookimpl
    def build_data(self, run: StageRun) -> StageData:
        """Prompts; demonstrations too when ptx_coef is set."""
        cfg = run.cfg.stage
        self.kl_coef = cfg.kl_coef
        if cfg.ptx_coef:
            records = run.records_for("sft")
            self.demonstrations = demonstrations(run, records)
        return StageData(prompts(run, run.plan.dataset.train, cfg.max_new_tokens))

    @hookimpl
    def build_models(self, run: StageRun) -> Models:
        """Policy, frozen reference, frozen reward model, and a value model that starts from the reward model."""
        models = models_for_roles(run)
        models.lr_by_role["value_model"] = run.cfg.stage.value_lr or run.cfg.stage.lr
        return models

    @hookimpl
    def collect_batch(self, run: StageRun, models: Models, data: StageData, step: int) -> Batch:
        """Rollouts with advantages and returns, cut into updates."""
        cfg = run.cfg.stage
        assert models.value_model is not None and self.kl_coef is not None
        rows, batch = collect_rollouts(run, models, data, step)
        rewards, values, lengths = [], [], []
        for row in rows:
            with torch.no_grad(), run.timed("values"):
                value = models.value_model(row.packed, row.packed.predict_M)
            kl = kl_estimate(row.old_logprob_M, row.reference_logprob_M, cfg.kl)
            rewards.append(token_rewards(row.score_C, kl, row.packed.completion_M, self.kl_coef))
            values.append(value)
            lengths.append(row.lengths_C)
        self._advantages(cfg, rows, torch.cat(rewards), torch.cat(values), torch.cat(lengths), batch)
        batch.metrics["kl_coef"] = self.kl_coef
        if cfg.kl_target:
            self.kl_coef = adaptive_coefficient(
                self.kl_coef, batch.metrics["kl"], cfg.kl_target, cfg.kl_horizon, sum(len(item) for item in lengths)
            )
        seed = run.seed_for("minibatches", step)
        for number, minibatch in enumerate(updates_of(rows, cfg.inner_epochs, seed)):
            tokens = sum(len(row.old_logprob_M) for row in minibatch)
            # The two networks share nothing, so each has its own update: gradients and clipping stay apart, and only
            # one network's gradients stand in memory.
            drift = Drift(tokens)
            policy = [Work("policy", row, tokens, drift) for row in minibatch]
            batch.updates.append([Work("value", row, tokens) for row in minibatch])
            batch.updates.append(policy + self._ptx(run, step, number))
        return batch

    @staticmethod
    def _advantages(
        cfg: Any, rows: list[RolloutRow], rewards_M: Tensor, values_M: Tensor, lengths_C: Tensor, batch: Batch
    ) -> None:
        """GAE over all completions of the iteration; writes values, advantages and returns into the rows."""
        mask_CT = torch.arange(int(lengths_C.max()), device=lengths_C.device)[None] < lengths_C[:, None]
        rewards_CT = to_rectangle(rewards_M, lengths_C)
        if cfg.whiten_rewards:
            rewards_CT = whiten(rewards_CT, mask_CT, keep_mean=True)
        values_CT = to_rectangle(values_M, lengths_C)
        advantages_CT, returns_CT = generalized_advantages(rewards_CT, values_CT, mask_CT, cfg.gamma, cfg.lam)
        returns = returns_CT[mask_CT]
        residual = (returns - values_M).var(unbiased=False)
        batch.metrics["value_mean"] = values_M.mean().item()
        batch.metrics["explained_variance"] = (1 - residual / returns.var(unbiased=False).clamp(min=1e-8)).item()
        if cfg.whiten_advantages:
            advantages_CT = whiten(advantages_CT, mask_CT)
        sizes = [len(row.old_logprob_M) for row in rows]
        columns = {"value": values_M, "advantage": advantages_CT[mask_CT], "return": returns}
        for name, column in columns.items():
            for row, part in zip(rows, column.split(sizes), strict=True):
                row.extra[name] = part

    def _ptx(self, run: StageRun, step: int, number: int) -> list[Work]:
        """Demonstrations for one update, when ptx_coef is set."""
        cfg = run.cfg.stage
        if not cfg.ptx_coef:
            return []
        updates = cfg.minibatches * cfg.inner_epochs
        examples = step_items(self.demonstrations, step * updates + number, cfg.ptx_batch_size, run.seed_for("ptx"))
        return [Work("ptx", row) for row in weighted_rows(examples, cfg.micro_batch_tokens)]

    @hookimpl
    def compute_loss(self, run: StageRun, models: Models, micro_batch: Work) -> LossOutput:
        """Policy, value or ptx loss of one row, as its share of the minibatch's mean."""
        cfg = run.cfg.stage
        row = micro_batch.row
        if micro_batch.kind == "ptx":
            loss = weighted_nll(models, row)
            return LossOutput(cfg.ptx_coef * loss, {"ptx_loss": loss.item()})
        share = 1.0 / micro_batch.tokens
        if micro_batch.kind == "value":
            value = models.call("value_model", row.packed, row.packed.predict_M)
            per_token = clipped_value_loss(value, row.extra["value"], row.extra["return"], cfg.value_clip_range)
            loss = per_token.sum() * share
            return LossOutput(cfg.value_coef * loss, {"value_loss": loss.item()})
        logprob, _ = models.call("policy", row.packed, cfg.temperature)
        per_token, ratio, clipped = clipped_policy_loss(
            logprob, row.old_logprob_M, row.extra["advantage"], cfg.clip_range, cfg.clip_range
        )
        loss = (row.weight_M * per_token).sum() * share
        assert micro_batch.drift is not None
        with torch.no_grad():
            metrics = {
                "policy_loss": loss.item(),
                "approx_kl": micro_batch.drift.add(run, row, logprob),
                "clip_frac": clipped.float().sum().item() * share,
                "ratio_gap": (ratio - 1).abs().sum().item() * share,
            }
        return LossOutput(loss, metrics)

    @hookimpl
    def evaluate(self, run: StageRun, models: Models, step: int) -> dict[str, float]:
        """Scored held-out completions, and the KL to the reference once training has begun."""
        metrics = score_heldout(run, models)
        return {**metrics, **kl_on_heldout(run, models)} if step else metrics

    @hookimpl
    def save_state(self) -> dict[str, Any]:
        """The moving KL coefficient."""
        return {"kl_coef": self.kl_coef}

    @hookimpl
    def load_state(self, state: dict[str, Any]) -> None:
        """Counterpart of save_state."""
        self.kl_coef = float(state["kl_coef"])
