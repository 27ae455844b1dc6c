"""How fast answers are made for a data set: rollout engines in batches against a loop of `model.generate`.

All answer the same prompts, which share the beginning of a task description as they do in stage=s3ft, greedily and to
full length, so that everybody makes equally many tokens. The loop takes one prompt at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gate import Gate
from benchmarks.race import Worker, WorkerError, say
from benchmarks.rows import generate

TASK = (
    "You are given a question. Think about it step by step, in short sentences, before you answer. First say what is "
    "asked for. Then list what is known, one fact a line, and leave out what plays no part. Work towards the answer in "
    "small steps and write down the result of each. If something cannot be known, say which assumption you make. When "
    "you are done, check the result against the question. End with a last line that begins with the words 'The final "
    "answer is' and holds the answer and nothing else. Do not repeat the question, do not add a greeting, and do not "
    "speak about these instructions."
)
"""The system message of every prompt."""

ITEMS = {"vllm": 64, "transformers": 64, "generate loop": 4}
"""Contender to prompts in one turn: the loop's pace does not depend on their number."""
NEW_TOKENS = 64
MAX_TOKENS = 512
LOOP = "generate loop"


def run_build(rounds: int, model: str | None, only: list[str], folder: Path) -> list[dict[str, Any]]:
    """Items a second of each contender: median, least and most of its rounds, after one turn that is not counted.
    Contenders are alive together and take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in ITEMS if not only or any(word in name for word in only)]
    workers: dict[str, Worker] = {}
    paces: dict[str, list[float]] = {name: [] for name in names}
    facts: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            workers[name] = Worker(folder / f"{name.replace(' ', '-')}.log", 1800.0)
            workers[name].send(_job(name, model))
            workers[name].answer()
        for turn in range(rounds + 1):
            for name, worker in workers.items():
                facts[name] = answer = worker.step()
                say(f"build: turn {turn} of {rounds}, {name}: {ITEMS[name] / answer['seconds']:.2f} items/s")
                if turn:
                    paces[name].append(ITEMS[name] / answer["seconds"])
    except WorkerError as error:
        raise SystemExit(f"error: {name}: {error}") from error
    finally:
        for worker in workers.values():
            worker.close()
    return [
        {"name": name, "items_per_s": median(pace), "least": min(pace), "most": max(pace), "items": ITEMS[name],
         "tokens": facts[name]["tokens"], "peak_gb": facts[name]["peak_gb"], "paces": pace}
        for name, pace in paces.items()
    ]  # fmt: skip


def build_table(summary: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table; `times` is against the loop, by medians."""
    loop = next((row["items_per_s"] for row in summary if row["name"] == LOOP), None)
    lines = ["| contender | items/s | range | times the loop | peak GB |", "|---|---:|---:|---:|---:|"]
    for row in summary:
        times = f"{row['items_per_s'] / loop:.1f}" if loop else "–"
        lines.append(
            f"| {row['name']} | {row['items_per_s']:.2f} | {row['least']:.2f}–{row['most']:.2f} | {times} "
            f"| {row['peak_gb']:.2f} |"
        )
    return "\n".join(lines)


def _job(name: str, model: str | None) -> str:
    return json.dumps({"side": "build", "contender": name, "model": model})


def work(job: dict[str, Any], gate: Gate) -> None:
    """A contender's process: load the model, then answer the turn's prompts at each turn."""
    import torch

    from core.planning.sources import resolve_source
    from core.quiet import hush
    from core.settings.schema import ModelConfig
    from core.tokens.codec import load_codec

    hush()
    gate.imported()
    cfg = ModelConfig(source=job["model"]) if job["model"] else embedded()
    folder = resolve_source(cfg)
    prompts = _prompts(load_codec(folder, cfg), ITEMS[job["contender"]])
    answer = _contender(job["contender"], folder)
    gate.ready(torch.get_num_threads())
    while gate.wait():
        made = answer(prompts)
        gate.done(gate.stop_clock(), made, 0.0)


def embedded() -> Any:
    """The model that a run takes which names none."""
    from core.config.typed import typed_config

    return typed_config(["stage=sft", "tracker=none"])[0].model


def _prompts(codec: Any, count: int) -> list[list[int]]:
    from core.data.records import Message

    questions = [row["instruction"] for row in generate("sft", count)]
    return codec.prompts([[Message("system", TASK), Message("user", question)] for question in questions])


def _contender(name: str, folder: Path) -> Any:
    """prompts -> number of new tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from core.types import Sampling

    sampling = Sampling(NEW_TOKENS, temperature=0.0)
    if name == "vllm":
        from plugins.rollout_vllm import VllmRolloutConfig
        from plugins.rollout_vllm.engine import VllmEngine

        engine: Any = VllmEngine(VllmRolloutConfig(name=name), folder, "bf16", 17, MAX_TOKENS)
        return lambda prompts: sum(len(one.completion_ids) for one in engine.generate(prompts, sampling))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if name == "transformers":
        from plugins.rollout_transformers import TransformersRolloutConfig
        from plugins.rollout_transformers.engine import TransformersEngine

        engine = TransformersEngine(model, TransformersRolloutConfig(name=name))
        return lambda prompts: sum(len(one.completion_ids) for one in engine.generate(prompts, sampling))

    def loop(prompts: list[list[int]]) -> int:
        made = 0
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS, pad_token_id=0,
            )  # fmt: skip
            made += out.shape[1] - ids.shape[1]
        return made

    return loop
