"""Keeps what happens while a stage trains: metrics.jsonl, samples.jsonl, the observers, the line of progress.

The loop alone calls it. A stage that brings a loop of its own gets it in `fit`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from core.console import Console
from core.jsonl import MetricsWriter
from core.platform.observers import Observers
from core.results import StageResult
from core.training.run import StageRun
from core.types import Evaluation, Section


class Recorder:
    """Records one run. `first` and `last` are the evaluations that make its headline."""

    def __init__(self, run: StageRun, observers: Observers, console: Console) -> None:
        self._run, self._observers, self._console = run, observers, console
        self._files = MetricsWriter(run.folder)
        self.total = 0
        """Steps that will be made; 0 before `begin`."""
        self.done = 0
        """Steps that were done when the one under way began."""
        self.first: Evaluation | None = None
        self.last: Evaluation | None = None
        self.facts: dict[str, float] = {}
        """Numbers of the examples that were made."""
        self.taken_up = False
        """Whether a checkpoint was looked for."""

    def begin(self, title: str, total: int) -> None:
        """The models stand, and `total` steps will be made."""
        self.total = total
        self._console.begin(title, total)

    def step(self, step: int, tokens: int, seconds: float, metrics: dict[str, float]) -> str:
        """Step `step` (from 1) is done. tokens, seconds: of the whole run so far. metrics: without prefix.

        Returns why an observer wants the run to end now; empty where none does.
        """
        named = {f"{self._run.name}/{name}": value for name, value in metrics.items()}
        self._files.metrics(step, named, tokens, seconds)
        asked = self._observers.on_step_end(self._run, step, named)
        self._console.step(step, self.total, metrics)
        return asked

    def made(self, facts: dict[str, float], resumed: bool) -> None:
        """Numbers of the examples that were made: in result.json, and as metrics `data/…` of step 0."""
        self.facts |= facts
        if facts and not resumed:
            named = {f"data/{name}": value for name, value in facts.items()}
            self._files.metrics(0, named)
            self._observers.on_step_end(self._run, 0, named)

    def evaluation(self, step: int, tokens: int, seconds: float, found: Evaluation, last: bool = False) -> str:
        """A held-out evaluation after `step` steps. last: training is over. Returns what `step` does."""
        when = "before" if self.first is None else "after" if last else "step"
        if self.first is None:
            self.first = found
        self.last = found
        named = {f"eval/{name}": value for name, value in found.metrics.items()}
        self._files.metrics(step, named, tokens, seconds)
        if found.samples:
            self.samples(step, when, found.samples)
        asked = self._observers.on_eval_end(self._run, step, named)
        self._console.evaluation(step, found.metrics)
        return asked

    def samples(self, step: int, when: str, rows: list[dict[str, Any]]) -> None:
        """Completions worth showing. when: before, step or after."""
        self._files.samples(when, step, rows)
        self._observers.on_samples(self._run, step, [{"when": when, "step": step, **row} for row in rows])

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint stands at `path`."""
        self._observers.on_checkpoint(self._run, step, path)

    def counts(self) -> dict[str, int]:
        """Rows of each file so far."""
        return self._files.counts()

    def cut_back(self, step: int, counts: dict[str, int] | None = None) -> None:
        """Forget what was recorded after `step`, and beyond `counts` rows of each file: a resumed run will write it
        again. -1 forgets everything."""
        self._files.truncate_after(step, counts)

    # -- the run as a whole ------------------------------------------------------------------------------------------

    def started(self) -> None:
        """Folder and models stand."""
        self._observers.on_run_start(self._run)

    def ended(self, result: StageResult) -> list[Section]:
        """The artifact was sealed. Returns the plugins' parts of the report."""
        self._observers.on_run_end(self._run, result)
        return self._observers.report_sections(self._run, result)

    def failed(self, phase: str, error: BaseException) -> None:
        """The run is about to end with `error`."""
        self._observers.on_run_error(self._run, phase, self.done, error)

    def seconds_by_plugin(self) -> dict[str, float]:
        """Wall-clock seconds that each plugin took as provider and as observer, the longest first."""
        total: dict[str, float] = defaultdict(float)
        for part in (self._run.parts.providers.seconds, self._observers.seconds_by_plugin):
            for name, value in part.items():
                total[name] += value
        return {name: round(value, 3) for name, value in sorted(total.items(), key=lambda item: -item[1])}

    def close(self) -> None:
        """Close files, and end the line of progress."""
        self._files.close()
        self._console.end()
