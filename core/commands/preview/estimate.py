"""What a plan can tell before anything heavy is loaded: steps, batches, trained tokens of a row, memory, time.

Loads the tokenizer and the stage's code, and no weights. Examples are made by the stage itself, so that what is shown
is what it would train on.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from core.console import Console
from core.data.records import BadRow, Record
from core.errors import DataError, ModelError
from core.planning.plan import Plan, StagePlan
from core.planning.plan_record import StagePreview, StepBatch, TrainedRow
from core.planning.sources import find_source, gguf_read_once, has_config, package_file, resolve_source
from core.platform.registry import Registry
from core.platform.spec_checks import check_returned
from core.tokens.codec import ChatCodec, load_codec
from core.tokens.examples import Pair
from core.tokens.heatmap import TokenRow, marked, token_texts

_SAMPLE = 32
"""Records that the plan makes examples of."""

_CPU_FLOPS = 1.1e11
"""Sustained bf16 training speed of one CPU core in FLOP/s, on a small cloud machine; a rough guess elsewhere."""

_PREPARED = 2e5
"""Tokens of records made into examples in a second, on one core."""

_BYTES_TRAINED = 2 + 4 + 4
"""bf16 weight, fp32 gradient and fp32 master of one trained parameter; the optimizer's state comes on top."""


class WeightedIds(NamedTuple):
    """Token ids, the weight of each in the loss, and which side of a pair they are."""

    ids: Sequence[int]
    weights: Sequence[float]
    label: str = ""


def add_previews(plan: Plan, registry: Registry) -> None:
    """Fill `preview` and `rows` of each stage that will run."""
    waiting = [stage for stage in plan.stages if stage.state != "reuse"]
    if not waiting:
        return
    codec = preview_codec(waiting[0])
    for stage in waiting:
        sample = stage.dataset.train[:_SAMPLE]
        try:
            examples, refused = stage_examples(plan, stage, registry, codec, sample)
        except DataError as error:  # of a few rows only; the run itself looks at all of them
            stage.warnings.append(f"no preview of the first {len(sample)} records: {error.what}")
            examples, refused = [], []
        if refused and not examples:
            stage.warnings.append(f"none of the first {len(sample)} records can be trained on: {refused[0].reason}")
        stage.rows = [row for example in examples[:3] for row in token_rows(example, codec)]
        stage.preview = estimate(stage, examples)


def stage_examples(
    plan: Plan, stage: StagePlan, registry: Registry, codec: ChatCodec, records: Sequence[Record]
) -> tuple[Sequence[Any], list[BadRow]]:
    """What the stage's own `build_data` makes of the records, and those that it refuses. Loads no weights and leaves
    no files.

    Raises DataError when the stage can do nothing with them.
    """
    from core.training.opening import open_stage

    # Limited and without held-out part: a stage may ask for more of the same data.
    cfg = copy.copy(stage.cfg)
    cfg.data = replace(cfg.data, limit=max(len(records), 1))
    part = replace(stage.dataset, train=records, heldout=[], heldout_prompts=[], quarantined=[])
    with tempfile.TemporaryDirectory(prefix="preftune-preview-") as folder:
        alone = replace(stage, cfg=cfg, dataset=part, run_dir=Path(folder), warnings=[], preview=StagePreview())
        opened = open_stage(plan, alone, registry, Console(quiet=True), codec=codec)
        try:
            data = opened.run.hooks.build_data(run=opened.run)
            check_returned(data, "build_data", stage.spec.impl)
            return data.train, opened.run.log.dropped
        finally:
            opened.close()


def weighted_ids(example: Any) -> list[WeightedIds]:
    """An example as token ids with weights: two rows of a pair, none of what has no tokens to show."""
    if isinstance(example, Pair):
        sides = (("chosen", example.chosen, 1.0), ("rejected", example.rejected, -1.0))
        return [
            WeightedIds([*example.prompt, *ids], [0.0] * len(example.prompt) + [weight] * len(ids), label)
            for label, ids, weight in sides
        ]
    ids = getattr(example, "ids", None)
    return [] if ids is None else [WeightedIds(ids, getattr(example, "weights", [0.0] * len(ids)))]


def token_rows(example: Any, codec: ChatCodec) -> list[TokenRow]:
    """`weighted_ids` with the text of each token."""
    return [
        TokenRow(row.ids, token_texts(codec.tokenizer, row.ids), row.weights, row.label)
        for row in weighted_ids(example)
    ]


def preview_codec(stage: StagePlan, *, tokenizer_alone: bool = False) -> ChatCodec:
    """The tokenizer of the stage's model, also where its weights are not on this machine yet.

    tokenizer_alone: take a folder that holds no model too.
    Raises ModelError for a folder that no stage can start from.
    """
    from core.models.loading import check_start

    cfg = stage.cfg.model
    folder = find_source(cfg)
    if folder is not None:
        if has_config(folder) or not tokenizer_alone:
            check_start(folder, cfg)
        return load_codec(folder, cfg)
    if stage.cfg.dry_run and cfg.source.startswith("package:"):
        path = package_file(cfg.source)
        with gguf_read_once():
            return load_codec(path.parent, cfg, gguf_file=path.name)
    return load_codec(resolve_source(cfg), cfg)


def estimate(stage: StagePlan, examples: Sequence[Any]) -> StagePreview:
    """Steps, batch, a few rows and rough cost for the plan, from examples of the first records."""
    cfg, records = stage.cfg.stage, stage.dataset.train
    # A record may make several examples, as a document makes chunks.
    each = len(examples) / min(len(records), _SAMPLE) if examples else 1.0
    made = len(records) * each
    wanted = made * cfg.epochs
    trained = sum(getattr(example, "trained", 0) for example in examples)
    if cfg.target_tokens and trained:
        wanted = cfg.target_tokens / trained * len(examples)
    steps = cfg.max_steps or max(1, math.ceil(wanted / cfg.batch_size))
    per_record = sum(example.tokens for example in examples) / max(len(examples), 1)
    prepared = per_record * made
    work = cfg.work()
    per_record += work.completions * work.new_tokens
    tokens = per_record * cfg.batch_size
    unit = {"prompts": "prompts", "preference": "pairs", "text": "chunks"}.get(stage.spec.data, "records")
    text = (
        f"{cfg.batch_size} {unit}"
        + (f" × {work.completions}" if work.completions > 1 else "")
        + f", ≈ {tokens:,.0f} tokens"
    )
    preview = StagePreview(
        total_steps=steps,
        batch=StepBatch(cfg.batch_size, unit, round(tokens), text, cfg.micro_batch_tokens),
        trained_rows=[
            TrainedRow(marked(row.texts, row.weights), len(row.ids), row.trained) for row in stage.rows if row.trained
        ][:3],
    )
    parameters = _parameters(stage)
    if not parameters:
        return preview
    memory, minutes = _cost(stage, parameters, tokens * steps, prepared)
    return replace(
        preview,
        memory_gb_estimate=round(memory, 1),
        memory_estimate=f"{memory:.1f} GB",
        time_estimate=f"{minutes:.0f} min on CPU" if minutes >= 1 else "< 1 min on CPU",
    )


def _parameters(stage: StagePlan) -> int | None:
    """Parameters of the source model, from the size of its files; None while they are not on this machine."""
    folder = find_source(stage.cfg.model)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config.json of the model cannot be read: {error}", str(folder), "name a folder in transformers' format"
        ) from error
    width = 4 if isinstance(config, dict) and config.get("dtype") == "float32" else 2
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) // width


def _cost(stage: StagePlan, parameters: int, tokens: float, prepared: float) -> tuple[float, float]:
    """Rough memory in GB and time in minutes, for people to see the order of magnitude. The run passes over `tokens`
    tokens, and makes examples of `prepared` ones, which takes the longer where few steps are made of a large file."""
    roles = set(stage.spec.roles)
    full = stage.cfg.peft.method == "none"
    trained = 2 if "value_model" in roles else 1
    frozen = len(roles - {"policy", "value_model"}) - (0 if full else "reference" in roles)
    if stage.spec.makes == "reward_model":
        trained, frozen = 1, 0
    engine = 1 if stage.engine is not None and not stage.engine.shares_policy else 0
    memory = (
        parameters
        * (trained * (_BYTES_TRAINED + stage.optimizer.spec.state_bytes if full else 2.5) + 2 * (frozen + engine))
        / 1e9
        + 1.2
    )
    passes = stage.cfg.stage.work().passes
    flops = tokens * parameters * (6 * trained * passes + 2 * (frozen + trained + engine))
    seconds = flops / (_CPU_FLOPS * (os.cpu_count() or 1)) + prepared / _PREPARED
    return memory, seconds / 60
