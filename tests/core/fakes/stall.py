"""An observer that stops the run at a named place, so that a test can kill it there, or until it is asked to end.

PREFTUNE_TEST_STALL is STAGE:HOOK:STEP:FILE; FILE is made when the place is reached.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from core import signals
from core.api import hookimpl


def _stall(run: Any, hook: str, step: int) -> None:
    stage, wanted, number, file = os.environ.get("PREFTUNE_TEST_STALL", ":::").split(":", 3)
    if (run.name, hook, str(step)) == (stage, wanted, number):
        Path(file).touch()
        while not signals.pending():
            time.sleep(0.02)


@hookimpl
def on_run_start(run: Any) -> None:
    """Before the first step and before examples are made."""
    _stall(run, "start", 0)


@hookimpl
def on_step_end(run: Any, step: int) -> None:
    """After the step was recorded, before its checkpoint."""
    _stall(run, "step", step)


@hookimpl
def on_checkpoint(run: Any, step: int) -> None:
    """After the checkpoint."""
    _stall(run, "checkpoint", step)


@hookimpl
def on_eval_end(run: Any, step: int) -> None:
    """After the evaluation was recorded; at the last step nothing but the export is left."""
    _stall(run, "eval", step)


@hookimpl
def on_run_end(run: Any, result: Any) -> None:
    """After result.json, before the report."""
    _stall(run, "end", result.steps)
