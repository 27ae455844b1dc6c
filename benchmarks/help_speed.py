"""How long a user waits for help: fresh processes, one after another, in turn. Torch-free."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.race import ENVIRONMENT, ROOT

STRANGERS = 50
"""Plugins of strangers, each with a stage and a preset."""
_PLUGIN = """
from dataclasses import dataclass
from core.api import StageConfig, StageSpec, hookimpl

PREFTUNE_API = 2

@dataclass
class Config(StageConfig):
    weight: float = 1.0
    \'\'\'Weight of the term.\'\'\'

@hookimpl
def register_stages():
    return [StageSpec("{name}", Config, "{name}.stage:Stage", "preference", "one of many")]

@hookimpl
def register_config_dirs():
    return ["pkg://{name}.conf"]
"""


def commands() -> dict[str, list[str]]:
    """Name to command line; TRL's are left out where its script is not installed."""
    found = {
        "python -m core --help": [sys.executable, "-m", "core", "--help"],
        "python -m core help stage=sft": [sys.executable, "-m", "core", "help", "stage=sft"],
    }
    beside = Path(sys.executable).with_name("trl")
    trl = str(beside) if beside.is_file() else shutil.which("trl")
    if trl:
        found |= {"trl --help": [trl, "--help"], "trl sft --help": [trl, "sft", "--help"]}
    return found


def install_plugins(site: Path, count: int) -> None:
    """Write `count` distributions into `site`, as installing them would: a stage with a preset each."""
    for number in range(count):
        name = f"bench_plugin_{number}"
        stages = site / name / "conf" / "stage"
        stages.mkdir(parents=True)
        (site / name / "__init__.py").write_text(_PLUGIN.format(name=name))
        (stages.parent / "__init__.py").write_text("")
        (stages / f"{name}_strict.yaml").write_text(f"defaults: [{name}]\nweight: 2.0\n")
        meta = site / f"{name}-1.0.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (meta / "entry_points.txt").write_text(f"[preftune]\n{name} = {name}\n")


def run_help(repeats: int) -> list[dict[str, Any]]:
    """Wall seconds of each command: median, least and most of `repeats` processes, after one that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        install_plugins(Path(folder), STRANGERS)
        return _measure(repeats, Path(folder))


def _measure(repeats: int, strangers: Path) -> list[dict[str, Any]]:
    plain = {**ENVIRONMENT, **os.environ, "PYTHONPATH": str(ROOT)}
    crowded = {**plain, "PYTHONPATH": f"{ROOT}{os.pathsep}{strangers}"}
    runs = [(name, command, plain) for name, command in commands().items()]
    runs.append((f"python -m core --help, {STRANGERS} more plugins", [sys.executable, "-m", "core", "--help"], crowded))
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    for repeat in range(repeats + 1):
        for name, command, environment in runs:
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return [
        {"name": name, "seconds": median(times), "least": min(times), "most": max(times), "times": times}
        for name, times in seconds.items()
    ]


def help_table(summary: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    rows = [f"| `{row['name']}` | {row['seconds']:.2f} | {row['least']:.2f}–{row['most']:.2f} |" for row in summary]
    return "\n".join(["| command | s | range |", "|---|---:|---:|", *rows])
