"""An observer that interrupts the run after the checkpoint of step PREFTUNE_TEST_INTERRUPT, as Ctrl-C would."""

from __future__ import annotations

import os

from core.api import hookimpl


@hookimpl
def on_checkpoint(step: int) -> None:
    """Interrupt; observers let it pass."""
    if str(step) == os.environ.get("PREFTUNE_TEST_INTERRUPT"):
        raise KeyboardInterrupt
