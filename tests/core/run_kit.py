"""Whole runs of a tiny random model, in this process or in one that is killed, and what two runs must share."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.testing import warm
from core.testing.run import Lab as TinyLab
from core.testing.run import assert_same_weights, fixed, read_json
from core.testing.run import make_lab as make_tiny_lab
from core.testing.run import read_rows as rows
from core.testing.warm import verify_here

__all__ = ["Lab", "ask_at", "ask_when", "assert_same", "make_lab", "read_json", "rows", "verify_here"]

FAKES = Path(__file__).parent / "fakes"
ROOT = Path(__file__).resolve().parents[2]
ENDS_IN_S = 240


class Lab(TinyLab):
    """The kit's tiny model and rows, with the words of the runs that the tests make: one epoch is 4 steps of 4."""

    def common(self, runs: Path | str) -> list[str]:
        """Settings that every run shares."""
        return [*self.words(Path(runs)), "eval.max_new_tokens=6", "stage.batch_size=4"]

    def sft(self, runs: Path | str, *more: str) -> list[str]:
        """Five steps of demonstrations, a checkpoint every second one."""
        return ["stage=sft", *self.common(runs), "stage.max_steps=5", "stage.save_every_steps=2", *more]

    def rlhf(self, runs: Path | str, algorithm: str, *more: str) -> list[str]:
        """Six steps of an algorithm, a checkpoint after each, with short stages before it."""
        return [
            "stage=rlhf", f"algorithm={algorithm}", *self.common(runs), "stage.max_steps=6", "stage.save_every_steps=1",
            *(f"upstream.{name}.{item}" for name in ("sft", "reward")
              for item in ("max_steps=3", "batch_size=4", "save_every_steps=1")),
            *([] if algorithm in ("dpo", "ipo") else ["stage.max_new_tokens=6", "stage.group_size=2"]), *more,
        ]  # fmt: skip


def make_lab(folder: Path) -> Lab:
    """Write the model and the data."""
    made = make_tiny_lab(folder)
    return Lab(made.model, made.data)


# ---- processes that are killed --------------------------------------------------------------------------------------


def _child(arguments: list[str], environment: dict[str, str], output: Path, prepare: Callable[[], None] | None) -> None:
    os.environ.update(environment)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.insert(0, str(FAKES))
    import core.artifacts.artifact
    from core.__main__ import main

    core.artifacts.artifact.verify_in_fresh_process = verify_here  # type: ignore[assignment]
    if prepare is not None:
        prepare()
    with warm.warm_stages():
        code = main(arguments)
    sys.exit(code)


def start(
    arguments: list[str],
    output: Path,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Any:
    """The command line in a process of its own, forked from a server that has imported what is slow to import.

    prepare: a function of a module, called in the process before the command.
    """
    return warm.start(_child, arguments, environment or {}, output, prepare)


def finish(process: Any) -> int:
    """Exit code of a process that ends by itself."""
    process.join(ENDS_IN_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the process did not end")
    return process.exitcode


def run_apart(arguments: list[str], output: Path, **more: Any) -> int:
    """`start` and `finish`."""
    return finish(start(arguments, output, **more))


def _stalled(arguments: list[str], place: str, folder: Path) -> tuple[Any, Path]:
    """The command in a process that waits at STAGE:HOOK:STEP (see fakes/stall.py), and the file of its output.

    Fails when the run ends before it comes to that place.
    """
    mark, output = folder / f"at-{place.replace(':', '-')}", folder / "killed.txt"
    output.unlink(missing_ok=True)
    plugins = ",".join(filter(None, ("stall", os.environ.get("PREFTUNE_PLUGINS"))))
    process = start(arguments, output, {"PREFTUNE_PLUGINS": plugins, "PREFTUNE_TEST_STALL": f"{place}:{mark}"})
    until = time.monotonic() + ENDS_IN_S
    while not mark.exists():
        assert process.exitcode is None and time.monotonic() < until, output.read_text()
        time.sleep(0.02)
    return process, output


def kill_at(arguments: list[str], place: str, folder: Path) -> str:
    """Run the command in a process and kill it with SIGKILL at STAGE:HOOK:STEP; what it printed."""
    process, output = _stalled(arguments, place, folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return output.read_text()


def ask_at(arguments: list[str], place: str, folder: Path, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Run the command in a process and send it a signal at STAGE:HOOK:STEP; its exit code and what it printed."""
    process, output = _stalled(arguments, place, folder)
    os.kill(process.pid, number)
    return finish(process), output.read_text()


def ask_when(
    arguments: list[str], reached: Callable[[], bool], seconds: float, output: Path, number: int = signal.SIGTERM
) -> int:
    """Run the command in a process and send it a signal so many seconds after it has reached something; its exit
    code."""
    process = start(arguments, output)
    until = time.monotonic() + ENDS_IN_S
    while process.exitcode is None and not reached() and time.monotonic() < until:
        time.sleep(0.003)
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, number)
    return finish(process)


# ---- what a run left ------------------------------------------------------------------------------------------------


def run_folders(runs: Path, stage: str) -> list[Path]:
    """Run folders of a stage, oldest first."""
    return sorted(runs.glob(f"*/*-{stage}*"), key=lambda path: path.stat().st_ctime if path.is_dir() else 0)


def only_folder(runs: Path, stage: str) -> Path:
    """The one run folder of a stage."""
    (folder,) = run_folders(runs, stage)
    return folder


def steps(folder: Path) -> list[int]:
    """Steps of the training rows of metrics.jsonl, in their order."""
    stage = read_json(folder / "plan.json")["stage"]
    return [row["step"] for row in rows(folder / "metrics.jsonl") if f"{stage}/loss" in row]


def assert_same(one: Path, other: Path) -> None:
    """The two run folders hold bit-identical weights and, times apart, the same records."""
    assert_same_weights(one / "artifact", other / "artifact")
    assert fixed(rows(one / "metrics.jsonl")) == fixed(rows(other / "metrics.jsonl"))
    assert rows(one / "samples.jsonl") == rows(other / "samples.jsonl")
    kept = ("steps", "tokens", "metric", "before", "after", "interval", "delta_interval", "verified")
    results = [read_json(folder / "result.json") for folder in (one, other)]
    assert {k: results[0][k] for k in kept} == {k: results[1][k] for k in kept}
