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

Suffixes: [M] completion tokens of a row, [C, T] completions by tokens, padded on the right, with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from core.api import Batch, Evaluation, LossOutput
from core.torch_api import Demonstration, Models, Stage, StageData, StageRun, step_items
from plugins.online.estimators import clipped_policy_loss, kl_estimate
from plugins.online.rollouts import (
    RolloutRow,
    drift,
    evaluate_online,
    limits,
    minibatches,
    sample_rollouts,
    with_old_logprobs,
)
from plugins.rlhf.ppo import PpoConfig
from plugins.sft.stage import WeightedRow, weighted_nll, weighted_rows

# 1. Formulas.


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is set, []; 0 where it is set nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    """(values - mean) / sqrt(var + 1e-8) over the masked entries, zero elsewhere; the variance is that of the entries
    themselves (divided by their count), as in the code of Ziegler et al. 2019.

    keep_mean adds the mean back, as is done for rewards.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    out = (values - mean) * torch.rsqrt(variance + 1e-8)
    if keep_mean:
        out = out + mean
    return out * mask


def generalized_advantages(
    rewards_CT: Tensor, values_CT: Tensor, mask_CT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al. 2016, arXiv:1506.02438, eq. 11-16): advantages and returns, [C, T] each, zero off the mask.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  the value after the end is 0.
    """
    mask = mask_CT.to(rewards_CT.dtype)
    values = values_CT * mask
    advantages = torch.zeros_like(rewards_CT)
    following = torch.zeros_like(rewards_CT[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards_CT.shape[1])):
        delta = rewards_CT[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, (advantages + values) * mask


def clipped_value_loss(value: Tensor, old_value: Tensor, return_: Tensor, clip_range: float) -> Tensor:
    """0.5 * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), elementwise; c = 0 leaves out the clipping."""
    plain = (value - return_) ** 2
    if clip_range <= 0:
        return 0.5 * plain
    held = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum(plain, (held - return_) ** 2)


def adaptive_coefficient(coefficient: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """Next KL coefficient (Ziegler et al. 2019): c * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


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


# 2. The stage.


@dataclass(frozen=True)
class ValueWork:
    """A row for the critic, and the completion tokens of its whole minibatch."""

    row: RolloutRow
    tokens: int


@dataclass(frozen=True)
class PolicyWork:
    """A row for the policy, and the completion tokens of its whole minibatch."""

    row: RolloutRow
    tokens: int


@dataclass(frozen=True)
class PtxWork:
    """Demonstrations mixed into an update of the policy."""

    row: WeightedRow


Work = ValueWork | PolicyWork | PtxWork


class Ppo(Stage[PpoConfig, StageData, Work]):
    """The algorithm. `kl_coef` moves when `kl_target` is set; it is saved and loaded with checkpoints."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.kl_coef = self.cfg.kl_coef
        self.demonstrations: Sequence[Demonstration] = []

    @override
    def build_data(self) -> StageData:
        """Prompts; demonstrations too when ptx_coef is set."""
        if self.cfg.ptx_coef:
            self.demonstrations = self.run.examples.demonstrations(self.run.records_for("sft"))
        return StageData(self.run.examples.prompts(self.run.plan.dataset.train, self.cfg.max_new_tokens))

    @override
    def build_models(self) -> Models:
        """Policy, frozen reference, frozen reward model, and a value model that starts from the reward model."""
        models = super().build_models()
        models.lr_by_role["value_model"] = self.cfg.value_lr or self.cfg.lr
        return models

    @override
    def collect_batch(self, models: Models, data: StageData, step: int) -> Batch[Work]:
        """Rollouts with advantages and returns, cut into updates."""
        run, cfg = self.run, self.cfg
        sampled = sample_rollouts(run, models, self.next_examples(data.train, step), step, cfg)
        rollouts = with_old_logprobs(run, models, sampled, cfg)
        rewards, values, lengths = [], [], []
        for row in rollouts.rows:
            with torch.no_grad(), run.log.timed("values"):
                values.append(models.call("value_model", row.packed, row.packed.predict_M))
            kl = kl_estimate(row.old, row.reference_logprob_M, cfg.kl)
            rewards.append(token_rewards(row.score_C, kl, row.packed.completion_M, self.kl_coef))
            lengths.append(row.lengths_C)
        metrics = rollouts.metrics
        metrics |= self._advantages(rollouts.rows, torch.cat(rewards), torch.cat(values), torch.cat(lengths))
        metrics["kl_coef"] = self.kl_coef
        if cfg.kl_target:
            self.kl_coef = adaptive_coefficient(
                self.kl_coef, metrics["kl"], cfg.kl_target, cfg.kl_horizon, sum(len(item) for item in lengths)
            )
        updates: list[list[Work]] = []
        seed = run.seed_for("minibatches", step)
        for number, minibatch in enumerate(minibatches(rollouts.rows, cfg.inner_epochs, seed)):
            tokens = sum(len(row.old) for row in minibatch)
            # The two networks share nothing, so each has its own update: gradients and clipping stay apart, and only
            # one network's gradients stand in memory.
            updates.append([ValueWork(row, tokens) for row in minibatch])
            updates.append([*(PolicyWork(row, tokens) for row in minibatch), *self._ptx(step, number)])
        return Batch(updates, metrics, rollouts.tokens, rollouts.samples, **limits(cfg))

    def _advantages(
        self, rows: list[RolloutRow], rewards_M: Tensor, values_M: Tensor, lengths_C: Tensor
    ) -> dict[str, float]:
        """GAE over all completions of the iteration; writes values, advantages and returns into the rows. Returns
        metrics."""
        cfg = self.cfg
        mask_CT = torch.arange(int(lengths_C.max()), device=lengths_C.device)[None] < lengths_C[:, None]
        rewards_CT = to_rectangle(rewards_M, lengths_C)
        if cfg.whiten_rewards:
            rewards_CT = whiten(rewards_CT, mask_CT, keep_mean=True)
        values_CT = to_rectangle(values_M, lengths_C)
        advantages_CT, returns_CT = generalized_advantages(rewards_CT, values_CT, mask_CT, cfg.gamma, cfg.lam)
        returns = returns_CT[mask_CT]
        residual = (returns - values_M).var(unbiased=False)
        if cfg.whiten_advantages:
            advantages_CT = whiten(advantages_CT, mask_CT)
        sizes = [len(row.old) for row in rows]
        columns = {"value": values_M, "advantage": advantages_CT[mask_CT], "return": returns}
        for name, column in columns.items():
            for row, part in zip(rows, column.split(sizes), strict=True):
                row.extra[name] = part
        return {
            "value_mean": values_M.mean().item(),
            "explained_variance": (1 - residual / returns.var(unbiased=False).clamp(min=1e-8)).item(),
        }

    def _ptx(self, step: int, number: int) -> list[PtxWork]:
        """Demonstrations for one update, when ptx_coef is set."""
        cfg = self.cfg
        if not cfg.ptx_coef:
            return []
        place = step * cfg.minibatches * cfg.inner_epochs + number
        examples = step_items(self.demonstrations, place, cfg.ptx_batch_size, self.run.seed_for("ptx"))
        return [PtxWork(row) for row in weighted_rows(examples, cfg.micro_batch_tokens)]

    @override
    def compute_loss(self, models: Models, micro_batch: Work) -> LossOutput:
        """Policy, value or ptx loss of one row, as its share of the minibatch's mean."""
        cfg = self.cfg
        if isinstance(micro_batch, PtxWork):
            loss = weighted_nll(models, micro_batch.row)
            return LossOutput(cfg.ptx_coef * loss, {"ptx_loss": loss.item()})
        row, share = micro_batch.row, 1.0 / micro_batch.tokens
        if isinstance(micro_batch, ValueWork):
            value = models.call("value_model", row.packed, row.packed.predict_M)
            per_token = clipped_value_loss(value, row.extra["value"], row.extra["return"], cfg.value_clip_range)
            loss = per_token.sum() * share
            return LossOutput(cfg.value_coef * loss, {"value_loss": loss.item()})
        logprob, _ = models.call("policy", row.packed, cfg.temperature)
        per_token, ratio, clipped = clipped_policy_loss(
            logprob, row.old, row.extra["advantage"], cfg.clip_range, cfg.clip_range
        )
        loss = (row.weight * per_token).sum() * share
        with torch.no_grad():
            metrics = {
                "policy_loss": loss.item(),
                "approx_kl": drift(row, logprob, micro_batch.tokens),
                "clip_frac": clipped.float().sum().item() * share,
                "ratio_gap": (ratio - 1).abs().sum().item() * share,
            }
        return LossOutput(loss, metrics)

    @override
    def evaluate(self, models: Models, data: StageData, step: int) -> Evaluation:
        """Scored held-out completions, and the KL to the reference once training has begun."""
        return evaluate_online(self.run, models, step, self.cfg)

    @override
    def save_state(self) -> dict[str, Any]:
        """The moving KL coefficient."""
        return {"kl_coef": self.kl_coef}

    @override
    def load_state(self, state: dict[str, Any]) -> None:
        """Counterpart of save_state."""
        self.kl_coef = float(state["kl_coef"])
