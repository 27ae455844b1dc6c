"""How long a user waits for help: fresh processes, one after another, in turn. Torch-free."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.race import ENVIRONMENT, ROOT


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


def run_help(repeats: int) -> list[dict[str, Any]]:
    """Wall seconds of each command: median, least and most of `repeats` processes, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands()}
    environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": str(ROOT)}
    for repeat in range(repeats + 1):
        for name, command in commands().items():
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
