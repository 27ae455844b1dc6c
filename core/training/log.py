"""What a run says: lines for the terminal and log.txt, warnings, rows in quarantine, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from core.console import Console
from core.data.records import BadRow, Record
from core.files import disk_guard
from core.stopwatch import Stopwatch


class RunLog:
    """The ways in which a stage tells what it does. `warnings`, `dropped` and `seconds` are there to be read."""

    def __init__(
        self, folder: Path, console: Console, warnings: Sequence[str] = (), quarantined: Sequence[BadRow] = ()
    ) -> None:
        """warnings: those that were shown already; quarantined: rows that became no record."""
        self._folder, self._console = folder, console
        self.warnings: list[str] = list(warnings)
        self.dropped: list[BadRow] = list(quarantined)
        """Rows and records that are not trained on."""
        self._watch = Stopwatch()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by part of the run."""
        return self._watch.seconds

    def say(self, text: str) -> None:
        """A line for the terminal and log.txt."""
        self._console.line(text)
        self.write(text)

    def warn(self, text: str) -> None:
        """A warning for the terminal, log.txt and the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._console.warn(text)
        self.write(f"warning: {text}")

    def write(self, text: str) -> None:
        """A line for log.txt alone."""
        path = self._folder / "log.txt"
        with disk_guard(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def heat_map(self, texts: Sequence[str], weights: Sequence[float]) -> None:
        """Tokens coloured by weight, for the terminal alone."""
        self._console.heat_map(texts, weights)

    def drop(self, record: Record, reason: str) -> None:
        """Put a record that cannot be trained on into quarantine."""
        meta = record.meta
        text = record.prompt[-1].content if record.prompt else record.text or ""
        self.dropped.append(BadRow(str(meta.get("file", "")), int(meta.get("line", 0)), reason, text[:200]))

    def timed(self, part: str) -> AbstractContextManager[None]:
        """Add the block's wall-clock time to `seconds[part]`, less what parts inside it take for themselves."""
        return self._watch.counted(part)
