"""What the terminal shows: the plan, a live line of progress, a summary. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.planning.plan import short_source
from core.tokens.heatmap import coloured, marked

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from core.planning.plan import Plan
    from core.results import StageResult
    from core.tokens.heatmap import TokenRow

_SHOWN = ("loss", "reward", "score", "accuracy", "kl", "entropy", "completion_tokens", "tokens_per_s")
"""Metrics worth a place in the progress line, in this order."""

_PLAIN_EVERY_S = 5.0
"""Without a terminal, a progress line at most so often, in seconds."""


_CONTEXT_TOKENS = 16
"""Context tokens that the plan shows beside the trained ones."""


class Console:
    """The one place that writes to the terminal."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console as Rich

        self.rich = Rich(highlight=False, soft_wrap=True, quiet=quiet)
        self.live = self.rich.is_terminal
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0

    def line(self, text: str) -> None:
        """One line."""
        self.rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self.rich.print(f"[yellow]warning:[/yellow] {_escape(text)}")

    def heat_map(self, texts: Sequence[str], weights: Sequence[float], end: str = "\n") -> None:
        """Tokens coloured by weight; with marks where the terminal has no colours."""
        shown: Any = marked(texts, [round(weight, 2) for weight in weights])
        if self.rich.color_system is not None:
            shown = coloured(texts, weights)
        self.rich.print(shown, end=end, markup=False)

    def plan(self, plan: Plan) -> None:
        """The whole plan: stages, roles, data, batch arithmetic, trained tokens, cost."""
        from rich.table import Table

        table = Table(title="plan", title_justify="left", expand=False, show_edge=False, pad_edge=False)
        for column in ("stage", "state", "records", "held out", "steps", "batch", "≈ time", "≈ memory"):
            table.add_column(column, overflow="fold")
        for stage in plan.stages:
            info, preview = stage.dataset.info, stage.preview
            table.add_row(
                stage.title,
                stage.state,
                str(info.train.records),
                str(info.heldout.records),
                str(preview.total_steps or ""),
                preview.batch.text,
                preview.time_estimate,
                preview.memory_estimate,
            )
        self.rich.print(table)
        target = plan.target
        self.line(f"  {'model':<13} {short_source(target.cfg.model.source)}")
        for role, source in target.roles().items():
            self.line(f"  {role:<13} {source}")
        if target.engine is not None:
            self.line(f"  {'rollouts':<13} {target.engine.name}")
        for part in ("reward", "judge"):
            if getattr(target, part) is not None:
                self.line(f"  {part:<13} {getattr(target, part).name}")
        from core.data.unread import column_pairs
        from core.report.sets import mixture_pairs, transform_pairs

        info = target.dataset.info
        for label, text in column_pairs(info.train):
            self.line(f"  {label:<13} {text}")
        for label, pairs in (("source", mixture_pairs(info)), ("transform", transform_pairs(info))):
            for name, text in pairs:
                self.line(f"  {label:<13} {name}: {text}")
        for stage in plan.stages:
            for row in stage.rows[:1]:
                self.row(stage.stage, row)
            for warning in stage.warnings:
                self.warn(f"{stage.stage}: {warning}")

    def row(self, label: str, row: TokenRow, context: int = _CONTEXT_TOKENS) -> None:
        """A row's tokens coloured by their weight; with marks where the terminal has no colours.

        context: tokens shown before the first and after the last one with a weight.
        """
        part = row.around(context)
        self.rich.print(f"  {label:<13} ", end="", markup=False)
        self.heat_map(part.texts, part.weights, end=" ")
        count = len(row.ids)
        told = f"{row.trained} of {count} tokens trained" if row.trained else f"prompt, {count} tokens"
        self.rich.print(f"({told})", style="dim", markup=False)

    def begin(self, title: str, total: int) -> None:
        """A stage starts its steps."""
        self._title, self._first, self._last_line = title, None, 0.0
        if not self.live:
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"),
            console=self.rich,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task(title, total=total, metrics="")

    def step(self, step: int, total: int, metrics: dict[str, float]) -> None:
        """A step is done."""
        text = "  ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if metrics.get(name) is not None)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, metrics=text)
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = (step, now)
        if now - self._last_line >= _PLAIN_EVERY_S or step == total:
            self._last_line = now
            since, began = self._first
            # Between steps alone: what came before the first, evaluation and all, tells nothing of their pace.
            left = f"  eta {_duration((now - began) / (step - since) * (total - step))}" if step > since else ""
            self.line(f"{self._title}: step {step}/{total}  {text}{left}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """A held-out evaluation is done."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
        if text:
            self.line(f"{self._title}: held-out at step {step}: {text}")

    def end(self) -> None:
        """The stage is over, well or not."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def summary(self, plan: Plan, results: Sequence[StageResult | None]) -> None:
        """Before and after of each stage, and where everything is."""
        from rich.table import Table

        table = Table(title="summary", title_justify="left", show_edge=False, pad_edge=False)
        for column in ("stage", "metric", "before", "after", "95 % interval", "tokens", "seconds", "verified"):
            table.add_column(column, overflow="fold")
        for stage, result in zip(plan.stages, results, strict=True):
            if result is None:
                continue
            table.add_row(
                stage.title + (" (reused)" if stage.state == "reuse" else ""),
                result.metric,
                _number(result.before),
                _number(result.after),
                " … ".join(_number(value) for value in result.interval or []),
                f"{result.tokens:,}",
                f"{result.seconds:.0f}",
                "yes" if result.verified else "NO",
            )
        self.rich.print(table)
        last = results[-1]
        if last is None:
            return
        if last.start is not None:
            self.line(f"{last.metric}: start {_number(last.start)} → end {_number(last.after)}")
        if last.reward_after is not None:
            name = plan.target.cfg.reward.name
            self.line(f"reward ({name}): {_number(last.reward_before)} → {_number(last.reward_after)}")
        if last.kl_to_reference is not None:
            self.line(f"KL to the reference: {last.kl_to_reference:.3f} nats a completion")
        from core.report.format import change_text

        for row in last.retention:
            self.line(f"{row.name.replace('_', ' ')}: {change_text(row)}")
        self.line(f"peak memory: {last.peak_memory_gb:.2f} GB")
        folder = plan.target.run_dir
        for label, name in (("report", "report.html"), ("artifact", "artifact"), ("metrics", "metrics.jsonl")):
            self.line(f"{label + ':':<10} {folder}/{name}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text.replace("\n", "⏎"))
