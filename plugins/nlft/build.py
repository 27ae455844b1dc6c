"""What records do not bring: the model's own answers, whether they are right, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from core.api import Sampling, Score, ScoreRequest
from core.torch_api import StageRun, build_rows, save_rows
from plugins.nlft import NlftConfig
from plugins.nlft.items import Attempt, filled

RULE = "The answer is wrong. The right answer is: {gold}"
"""The judgement where the judge has no words of its own."""
BUILD_SETTINGS = ("completions", "gold_column", "judgement_column", "span_labels", "max_new_tokens", "temperature")
"""Settings of the stage that its answers depend on; the others are of weighing and training."""


@dataclass
class Built:
    """Items with answers and judgements, and why others have none."""

    items: list[Attempt]
    failures: list[str]


def build_items(run: StageRun, items: Sequence[Attempt], cfg: NlftConfig, name: str = "feedback") -> Built:
    """Fill in what the items lack, and save what was made as `built/<name>.jsonl` in the run folder.

    What fails costs its item, is counted and told in `failures`, and never ends the run.
    """
    waiting = [item for item in items if item.right is None or _unjudged(item)]
    rows: list[dict[str, Any]] = []
    if waiting:
        settings = {"part": name, **{key: getattr(cfg, key) for key in BUILD_SETTINGS}}
        rows = build_rows(run, waiting, partial(_made, run, cfg), settings, cfg.build_batch)
        save_rows(run.folder / "built", name, [row for row in rows if not row["error"]])
    made = {item.record.key: row for item, row in zip(waiting, rows, strict=True)}
    built = Built([], [])
    for item in items:
        row = made.get(item.record.key)
        ready = item if row is None else _read(item, row)
        if row is not None and row["error"]:
            built.failures.append(row["error"])
        elif not ready.right and not ready.record.spans and not ready.gold:
            built.failures.append("a wrong answer without a gold answer beside it")
        else:
            built.items.append(ready)
    return built


def _unjudged(item: Attempt) -> bool:
    return item.right is False and item.judgement is None and not item.record.spans


def _read(item: Attempt, row: dict[str, Any]) -> Attempt:
    return replace(
        item, answer=row["messages"][-1]["content"], answer_ids=tuple(row["completion_ids"]), right=row["right"],
        judgement=row["judgement"],
    )  # fmt: skip


def _made(run: StageRun, cfg: NlftConfig, items: Sequence[Attempt]) -> list[dict[str, Any]]:
    """One row for each item; see docs/nlft.md for its fields."""
    answered = _answered(run, cfg, items)
    with run.log.timed("judge"):
        scores = run.parts.judge().score([_request(item) for item in answered])
    return [_row(*_judged(item, score, run.cfg.judge.threshold)) for item, score in zip(answered, scores, strict=True)]


def _answered(run: StageRun, cfg: NlftConfig, items: Sequence[Attempt]) -> list[Attempt]:
    """The items, with the start model's own answers where rows bring none."""
    asked = [item for item in items if item.answer is None]
    if not asked:
        return list(items)
    sampling = Sampling(
        cfg.max_new_tokens, cfg.temperature, seed=run.seed_for("build", asked[0].record.key),
        stop_token_ids=run.codec.ends,
    )  # fmt: skip
    with run.log.timed("rollout"):
        prompts = run.codec.prompts([item.record.prompt for item in asked])
        rollouts = iter(run.parts.engine().generate(prompts, sampling))
    answered = []
    for item in items:
        if item.answer is None:
            ids = next(rollouts).completion_ids
            answered.append(replace(item, answer=run.codec.said(ids).answer, answer_ids=tuple(ids)))
        else:
            answered.append(item)
    return answered


def _request(item: Attempt) -> ScoreRequest:
    meta = {**item.record.meta, "reference": item.gold}
    return ScoreRequest(item.record.prompt[-1].content, item.answer or "", answer=item.final, meta=meta)


def _judged(item: Attempt, score: Score, threshold: float) -> tuple[Attempt, str]:
    """The item with what the judge says of its answer, and why that is not to be had. What the record says of right
    and wrong stands."""
    if score.value is None:
        return item, f"the judge failed: {score.error}"
    agrees = score.value >= threshold
    right = agrees if item.right is None else item.right
    if right:
        return replace(item, right=True, judgement=""), ""
    said = "" if agrees else score.text
    return replace(item, right=False, judgement=said or filled(RULE, gold=item.final or item.gold)), ""


def _row(item: Attempt, error: str) -> dict[str, Any]:
    turns = [message.as_dict() for message in item.record.prompt]
    return {
        "messages": [*turns, {"role": "assistant", "content": item.answer}],
        "gold": item.gold,
        "answer": item.final,
        "right": item.right,
        "judgement": item.judgement,
        "completion_ids": list(item.answer_ids),
        "error": error,
    }
