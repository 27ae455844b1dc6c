"""Held-out scores before and after, with intervals. The same prompts, the same greedy sampling, the same scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.models.roles import Models
from core.results import MetricChange
from core.scoring.guarded import summarise
from core.tokens.requests import score_request, shown
from core.training.run import StageRun, heldout_prompts
from core.types import Evaluation, Sampling

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


def score_heldout(run: StageRun, models: Models) -> Evaluation:
    """Generate greedily for the held-out prompts and score what came.

    Metrics: `score` (mean of the true scorer over items without error), `reward` (mean of the run's reward where it
    differs), `finished` (share that ended by themselves), `completion_tokens` (mean) and `score_errors`. Empty where
    there is no prompt to answer, or no policy.
    """
    held = heldout_prompts(run, models.codec)
    if not held or models.policy is None:
        return Evaluation()
    sampling = Sampling(
        max_new_tokens=run.cfg.eval.max_new_tokens, temperature=0.0, seed=run.seed_for("eval"),
        stop_token_ids=models.codec.ends,
    )  # fmt: skip
    rollouts = run.parts.evaluation_engine().generate([ids for _, ids in held], sampling)
    requests = [
        score_request(record, models.codec.said(rollout.completion_ids), rollout.prompt_ids, rollout.completion_ids)
        for (record, _), rollout in zip(held, rollouts, strict=True)
    ]
    metrics = {
        "finished": sum(rollout.finished for rollout in rollouts) / len(rollouts),
        "completion_tokens": sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts),
    }
    columns: dict[str, list[float | None]] = {}
    for name, scorer in (("score", run.parts.true_scorer()), ("reward", run.parts.reward())):
        if scorer is None:
            continue
        scores = scorer.score(requests)
        columns[name] = [score.value for score in scores]
        summary = summarise(scores)
        if summary["mean"] is not None:
            metrics[name] = summary["mean"]
        if summary["errors"]:
            metrics[f"{name}_errors"] = summary["errors"] or 0.0
    samples = [
        {
            "index": index,
            **shown(request),
            **{name: values[index] for name, values in columns.items()},
        }
        for index, request in enumerate(requests[: run.cfg.eval.samples])
    ]
    items = columns.get("score") or columns.get("reward") or []
    return Evaluation(metrics, items, requests=requests, samples=samples)


def headline(first: Evaluation | None, last: Evaluation | None, measured: Sequence[str] = ()) -> dict[str, Any]:
    """Before, after and intervals of the run's own metric, by the names of core.results.StageResult.

    measured: names of the metrics that `eval.metrics` gave.
    """
    start, end = first or Evaluation(), last or Evaluation()
    before, after = start.metrics, end.metrics
    name = "score" if "score" in after else next((key for key in ("reward", "heldout_loss") if key in after), None)
    known = [item for item in end.items if item is not None]
    binary = bool(known) and all(item in (0.0, 1.0) for item in known)
    labels = {"score": "held-out accuracy" if binary else "held-out score", "reward": "held-out reward"}
    delta = paired_interval(start.items, end.items)
    prefix = "heldout_loss/"
    return {
        "metric": end.headline or labels.get(name or "", (name or "").replace("_", " ")),
        "before": before.get(name) if name else None,
        "after": after.get(name) if name else None,
        "interval": list(bootstrap(known)) if known else None,
        "delta_interval": list(delta) if delta else None,
        "items": len(known),
        "reward_before": before.get("reward"),
        "reward_after": after.get("reward"),
        "kl_to_reference": after.get("kl_to_reference"),
        "metrics": [MetricChange(key, before.get(key), after.get(key)) for key in measured],
        "heldout_loss_by_source": {
            key.removeprefix(prefix): {"before": before.get(key), "after": value}
            for key, value in after.items()
            if key.startswith(prefix)
        },
        "first": before,
        "last": after,
    }
