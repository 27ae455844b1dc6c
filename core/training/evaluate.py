"""Held-out scores before and after, with intervals. The same prompts, the same greedy sampling, the same scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from core.models.roles import Models
from core.scoring.guarded import summarise
from core.types import Sampling, ScoreRequest

if TYPE_CHECKING:
    from core.training.run import StageRun

_RESAMPLES = 2000


def bootstrap(items: list[float], seed: int = 0, weights: list[float] | None = None) -> tuple[float, float]:
    """95 % percentile interval of the mean of `items` (weighted, where there are weights), from 2000 resamples."""
    values = np.asarray(items, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    if weights is None:
        means = values[draws].mean(axis=1)
    else:
        weight = np.asarray(weights, dtype=float)
        means = (values * weight)[draws].sum(axis=1) / weight[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(before: list[float | None], after: list[float | None]) -> tuple[float, float] | None:
    """95 % interval of the mean difference over items that have both scores; None when there is none."""
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if a is not None and b is not None]
    if not pairs:
        return None
    return bootstrap([b - a for a, b in pairs])


def score_heldout(run: StageRun, models: Models) -> dict[str, float]:
    """Generate greedily for the held-out prompts and score what came.

    Returns `score` (mean of the true scorer over items without error), `reward` (mean of the run's reward where it
    differs), `finished` (share that ended by themselves), `completion_tokens` (mean) and `score_errors`. Keeps the
    items' scores in `run.eval_items` for the interval, and hands samples to the observers.
    """
    records = run.eval_records()
    if not records or models.policy is None:
        return {}
    prompts = run.codec.prompts([record.prompt for record in records], [record.tools for record in records])
    sampling = Sampling(
        max_new_tokens=run.cfg.eval.max_new_tokens, temperature=0.0, seed=run.seed_for("eval"),
        stop_token_ids=(run.codec.eos,),
    )  # fmt: skip
    rollouts = run.evaluation_engine().generate(prompts, sampling)
    requests = [
        ScoreRequest(
            prompt=record.prompt[-1].content,
            completion=run.codec.text(rollout.completion_ids),
            prompt_ids=tuple(rollout.prompt_ids),
            completion_ids=tuple(rollout.completion_ids),
            answer=record.answer,
            meta=dict(record.meta),
        )
        for record, rollout in zip(records, rollouts, strict=True)
    ]
    run.eval_requests = requests
    metrics = {
        "finished": sum(rollout.finished for rollout in rollouts) / len(rollouts),
        "completion_tokens": sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts),
    }
    columns: dict[str, list[float | None]] = {}
    for name, scorer in (("score", run.true_scorer()), ("reward", run.reward_scorer())):
        if scorer is None:
            continue
        scores = scorer.score(requests)
        columns[name] = [score.value for score in scores]
        summary = summarise(scores)
        if summary["mean"] is not None:
            metrics[name] = summary["mean"]
        if summary["errors"]:
            metrics[f"{name}_errors"] = summary["errors"] or 0.0
    run.eval_items = columns.get("score") or columns.get("reward") or []
    rows = [
        {
            "index": index,
            "prompt": request.prompt,
            "completion": request.completion,
            "answer": request.answer,
            **{name: values[index] for name, values in columns.items()},
        }
        for index, request in enumerate(requests[: run.cfg.eval.samples])
    ]
    run.eval_samples(rows)
    return metrics


def headline(run: StageRun) -> dict[str, Any]:
    """Before, after and intervals of the run's own metric, for result.json."""
    before, after = run.first_eval or {}, run.last_eval or {}
    name = "score" if "score" in after else next((key for key in ("reward", "heldout_loss") if key in after), None)
    items_before, items_after = before.get("items", []), after.get("items", [])
    known = [item for item in items_after if item is not None]
    binary = bool(known) and all(item in (0.0, 1.0) for item in known)
    labels = {"score": "held-out accuracy" if binary else "held-out score", "reward": "held-out reward"}
    label = run.eval_metric or labels.get(name or "", (name or "").replace("_", " "))
    delta = paired_interval(items_before, items_after)
    prefix = "heldout_loss/"
    by_source = {
        key.removeprefix(prefix): {"before": before.get(key), "after": value}
        for key, value in after.items()
        if key.startswith(prefix)
    }
    return {
        "metric": label,
        "before": before.get(name) if name else None,
        "after": after.get(name) if name else None,
        "interval": list(bootstrap(known)) if known else None,
        "delta_interval": list(delta) if delta else None,
        "items": len(known),
        "reward_before": before.get("reward"),
        "reward_after": after.get("reward"),
        "kl_to_reference": after.get("kl_to_reference"),
        "metrics": [{"name": name, "before": before.get(name), "after": after.get(name)} for name in run.metric_names],
        **({"heldout_loss_by_source": by_source} if by_source else {}),
    }
