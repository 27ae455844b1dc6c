"""The worker's side of the race: it waits for its turn, makes one step, and tells how it went."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Gate:
    """Turns come as lines on standard input, answers go as JSON lines to the original standard output.

    Whatever else the process prints goes to standard error.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.baseline_gb = 0.0
        self._began = self._cpu = 0.0

    def imported(self) -> None:
        """The libraries are imported; what the process holds now is not the training's."""
        self.baseline_gb = memory_gb("VmRSS")

    def say(self, **answer: Any) -> None:
        """One answer."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def ready(self, threads: int) -> None:
        """Everything is built. threads: those that torch uses."""
        self.say(threads=threads, baseline_gb=self.baseline_gb)

    def wait(self) -> bool:
        """Block until the next turn; False when the race is over."""
        line = sys.stdin.readline()
        self._began, self._cpu = time.perf_counter(), time.process_time()
        return line.strip() == "step"

    def stop_clock(self) -> tuple[float, float]:
        """Wall and CPU seconds since the turn began."""
        return time.perf_counter() - self._began, time.process_time() - self._cpu

    def done(self, clock: tuple[float, float], tokens: int, loss: float, **more: Any) -> None:
        """Answer for one step."""
        self.say(
            seconds=clock[0], cpu_seconds=clock[1], tokens=tokens, loss=loss, peak_gb=memory_gb("VmHWM"),
            idle_gb=memory_gb("VmRSS"), **more,
        )  # fmt: skip


def memory_gb(field: str) -> float:
    """A field of this process's memory in GB (10^9 bytes): VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status")
    if not status.is_file():
        from core.training.memory import peak_memory_gb

        return peak_memory_gb()
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0
