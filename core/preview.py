"""What a plan can tell before anything heavy is loaded: steps, batches, trained tokens of a row, memory, time.

Loads the tokenizer, and nothing heavier.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.plan import Plan, StagePlan
from core.records import Record
from core.sources import find_source, gguf_read_once, package_file, resolve_source
from core.tokens import ChatCodec, load_codec

_SAMPLE = 32
"""Records whose length is measured."""

_CPU_FLOPS = 1.1e11
"""Sustained bf16 training speed of one CPU core in FLOP/s, on a small cloud machine; a rough guess elsewhere."""

_BYTES_TRAINED = 2 + 4 + 4 + 8
"""bf16 weight, fp32 gradient, fp32 master and two fp32 moments of one trained parameter."""


def add_previews(plan: Plan) -> None:
    """Fill `preview` of each stage that will run."""
    waiting = [stage for stage in plan.stages if stage.state != "reuse"]
    if not waiting:
        return
    codec = _codec(waiting[0])
    for stage in waiting:
        stage.preview = _preview(stage, codec)


def _codec(stage: StagePlan) -> ChatCodec:
    cfg = stage.cfg.model
    folder = find_source(cfg)
    if folder is not None:
        return load_codec(folder, cfg)
    if stage.cfg.dry_run and cfg.source.startswith("package:"):
        path = package_file(cfg.source)
        with gguf_read_once():
            return load_codec(path.parent, cfg, gguf_file=path.name)
    return load_codec(resolve_source(cfg), cfg)


def _text(record: Record) -> str:
    return record.completion or record.chosen or record.text or ""


def _preview(stage: StagePlan, codec: ChatCodec) -> dict[str, Any]:
    cfg, records = stage.cfg.stage, stage.dataset.train
    steps = cfg.max_steps or max(1, math.ceil(len(records) * cfg.epochs / cfg.batch_size))
    sample = records[:_SAMPLE]
    prompts = codec.prompts([record.prompt for record in sample])
    texts = [_text(record) for record in sample]
    completions = codec.completions(texts)
    other = codec.completions([record.rejected for record in sample if record.rejected])
    per_record = (sum(map(len, prompts)) + sum(map(len, completions)) + sum(map(len, other))) / max(len(sample), 1)
    group = getattr(cfg, "group_size", 1)
    if stage.engine is not None:
        per_record += group * getattr(cfg, "max_new_tokens", 0)
    tokens = per_record * cfg.batch_size
    unit = {"prompts": "prompts", "preference": "pairs"}.get(stage.spec.data, "records")
    text = f"{cfg.batch_size} {unit}" + (f" × {group}" if group > 1 else "") + f", ≈ {tokens:,.0f} tokens"
    preview: dict[str, Any] = {
        "total_steps": steps,
        "batch": {"size": cfg.batch_size, "unit": unit, "tokens": round(tokens), "text": text,
                  "micro_batch_tokens": cfg.micro_batch_tokens},
        "trained_rows": [
            {"prompt": codec.tokenizer.decode(prompt), "trained": codec.tokenizer.decode(completion),
             "tokens": len(completion)}
            for prompt, completion, plain in zip(prompts[:3], completions[:3], texts[:3], strict=True)
            if plain
        ],
    }  # fmt: skip
    parameters = _parameters(stage)
    if parameters:
        preview |= _cost(stage, parameters, tokens * steps)
    return preview


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


def _cost(stage: StagePlan, parameters: int, tokens: float) -> dict[str, Any]:
    """Rough memory in GB and time, for people to see the order of magnitude."""
    roles = set(stage.spec.roles)
    full = stage.cfg.peft.method == "none"
    trained = 2 if "value_model" in roles else 1
    frozen = len(roles - {"policy", "value_model"}) - (0 if full else "reference" in roles)
    if stage.spec.makes == "reward_model":
        trained, frozen = 1, 0
    engine = 1 if stage.engine is not None and not stage.engine.shares_policy else 0
    memory = parameters * (trained * (_BYTES_TRAINED if full else 2.5) + 2 * (frozen + engine)) / 1e9 + 1.2
    updates = getattr(stage.cfg.stage, "inner_epochs", 1)
    flops = tokens * parameters * (6 * trained * updates + 2 * (frozen + trained + engine))
    seconds = flops / (_CPU_FLOPS * (os.cpu_count() or 1))
    minutes = seconds / 60
    return {
        "memory_gb_estimate": round(memory, 1),
        "memory_estimate": f"{memory:.1f} GB",
        "time_estimate": f"{minutes:.0f} min on CPU" if minutes >= 1 else "< 1 min on CPU",
    }
