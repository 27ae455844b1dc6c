"""Writes metrics as TensorBoard scalars, samples, config and result as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from core.api import hookimpl
from plugins.tracker_tensorboard import TensorboardConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from core.api import Run, StageResult


class TensorboardTracker:
    """Observer that keeps one event file for one stage.

    The file is opened with the first event. Where the folder holds events of an interrupted run, those of the same and
    later steps are marked as overwritten, so that a resumed run shows one line.
    """

    def __init__(self, config: TensorboardConfig) -> None:
        self.config = config
        self.writer: SummaryWriter | None = None

    @hookimpl
    def on_run_start(self) -> None:
        """Forget the stage before."""
        self._close()

    @hookimpl
    def on_step_end(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Write the step's metrics under their own names."""
        self._scalars(run, step, metrics)

    @hookimpl
    def on_eval_end(self, run: Run, step: int, metrics: dict[str, float]) -> None:
        """Write held-out metrics under `eval/`."""
        self._scalars(run, step, {name if "/" in name else f"eval/{name}": value for name, value in metrics.items()})

    @hookimpl
    def on_samples(self, run: Run, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the first rows as text, one tag for each sample."""
        writer = self._open(run, step)
        for place, row in enumerate(rows[: self.config.max_samples]):
            index = row.get("index", place)
            known = {name: row[name] for name in ("score", "reward", "answer") if row.get(name) is not None}
            facts = ", ".join(f"{name} {value}" for name, value in known.items())
            text = f"**{row.get('when', 'step')}**\n\n{_block(facts)}\n\nprompt\n\n{_block(row.get('prompt'))}"
            text += f"\n\ncompletion\n\n{_block(row.get('completion'))}"
            writer.add_text(f"samples/{index}", text, step)

    @hookimpl
    def on_run_end(self, run: Run, result: StageResult) -> None:
        """Write the result as scalars and text, and close the file."""
        step, told = result.steps, result.to_json()
        try:
            numbers = ("start", "before", "after", "reward_before", "reward_after", "kl_to_reference")
            self._scalars(run, step, {f"result/{name}": told[name] for name in numbers})
            text = _block(json.dumps(told, indent=2, ensure_ascii=False, default=str))
            self._open(run, step).add_text("result", text, step)
        finally:
            self._close()

    @hookimpl
    def on_run_error(self, run: Run, phase: str, step: int, error: BaseException) -> None:
        """Write phase and error as text, and close the file."""
        try:
            self._open(run, step).add_text("error", _block(f"{phase}: {type(error).__name__}: {error}"), step)
        finally:
            self._close()

    def _open(self, run: Run, step: int) -> SummaryWriter:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = run.folder / self.config.folder
            again = folder.is_dir() and any(folder.glob("events.out.tfevents.*"))
            purge = step if again else None
            self.writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=max(1, round(self.config.flush_s)))
            if not again:
                config = json.dumps(run.config_json, indent=2, ensure_ascii=False, default=str)
                self.writer.add_text("config", _block(config), 0)
        return self.writer

    def _scalars(self, run: Run, step: int, metrics: dict[str, Any]) -> None:
        writer = self._open(run, step)
        for name, value in metrics.items():
            if isinstance(value, int | float) or hasattr(value, "item"):
                writer.add_scalar(name, value, step)

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _block(text: Any) -> str:
    """Text as an indented Markdown code block, so that nothing in it is taken for markup."""
    return "\n".join(f"    {line}" for line in str(text if text is not None else "").splitlines()) or "    "
