"""Work in a process of its own, which gives all its memory back and dies with its parent. Torch-free."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from core import signals
from core.errors import PreftuneError, Reported, TrainingError
from core.platform.providers import tell


def run_apart(work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work(*arguments)` in a fresh process that shares this one's terminal, and wait for it.

    work: a function of a module; it and its arguments are pickled.
    Raises: Reported when it failed and its process has said why; TrainingError when the process was killed.
    """
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(work, arguments), name="stage")
    resource_tracker.ensure_running()  # which would take the signals again when it starts
    try:
        with signals.blocked():
            process.start()
        process.join()
    except KeyboardInterrupt as error:
        # Of a terminal's Ctrl-C it knows; of what was sent to this process alone it does not.
        with signals.held():
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, getattr(error, "number", signal.SIGINT))
                process.join()
        raise
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        raise TrainingError(
            f"the stage's process was ended by {name}",
            mend="the same command resumes from the last checkpoint" + _OUT_OF_MEMORY * (name == "SIGKILL"),
        )
    if code:
        raise Reported(code)


_OUT_OF_MEMORY = (
    "; if the system killed it for want of memory, lower stage.micro_batch_tokens or stage.batch_size, or set peft=lora"
)


def _run(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    code = 1
    try:
        with signals.obeyed(told=False):
            signals.unblock()
            work(*arguments)
        code = 0
    except PreftuneError as error:
        tell(error)
        code = error.exit_code
    except KeyboardInterrupt as error:
        code = signals.exit_code(error)
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.exit(code)


def _die_with_parent() -> None:
    """Without its parent the work has no lock on its folder any more: another process may be resuming it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
