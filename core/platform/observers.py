"""Calls observers one by one, so that none of them can end a run, and counts the seconds that each one takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import describe
from core.platform.hook_checks import place_of
from core.platform.providers import raised_at
from core.types import Section, Stop

if TYPE_CHECKING:
    import pluggy

    from core.platform.run_view import Run
    from core.results import StageResult


class Observers:
    """The observer hooks of every plugin of a manager; of none where there is no manager.

    An exception is told once for each plugin and hook through `warn`, with the plugin's name, and survived; the
    plugin is called again the next time. KeyboardInterrupt and SystemExit pass. Dictionaries and lists are handed
    out as copies, so one observer cannot change what the next one, or the run, sees.

    seconds_by_plugin: wall-clock seconds spent in each plugin so far, by plugin name.
    failures: number of exceptions, by (plugin name, hook name).
    """

    def __init__(
        self,
        manager: pluggy.PluginManager | None,
        warn: Callable[[str], None],
        may_stop: Callable[[str], bool] = lambda _plugin: False,
    ) -> None:
        """may_stop: whether a plugin, by its name, may end a run before its last step."""
        self.manager = manager
        self.warn = warn
        self.may_stop = may_stop
        self.seconds_by_plugin: dict[str, float] = defaultdict(float)
        self.failures: dict[tuple[str, str], int] = defaultdict(int)

    def on_run_start(self, run: Run) -> None:
        """See ObserverHooks.on_run_start."""
        self._call("on_run_start", run=run)

    def on_step_end(self, run: Run, step: int, metrics: dict[str, float]) -> str:
        """See ObserverHooks.on_step_end. Returns why an observer wants the run to end; empty where none does."""
        return self._asked("on_step_end", run=run, step=step, metrics=metrics)

    def on_eval_end(self, run: Run, step: int, metrics: dict[str, float]) -> str:
        """See ObserverHooks.on_eval_end. Returns what `on_step_end` does."""
        return self._asked("on_eval_end", run=run, step=step, metrics=metrics)

    def on_samples(self, run: Run, step: int, rows: list[dict[str, Any]]) -> None:
        """See ObserverHooks.on_samples."""
        self._call("on_samples", run=run, step=step, rows=rows)

    def on_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """See ObserverHooks.on_checkpoint."""
        self._call("on_checkpoint", run=run, step=step, path=path)

    def on_run_end(self, run: Run, result: StageResult) -> None:
        """See ObserverHooks.on_run_end."""
        self._call("on_run_end", run=run, result=result)

    def on_run_error(self, run: Run, phase: str, step: int, error: BaseException) -> None:
        """See ObserverHooks.on_run_error."""
        self._call("on_run_error", run=run, phase=phase, step=step, error=error)

    def report_sections(self, run: Run, result: StageResult) -> list[Section]:
        """Sections of every plugin, by their `order`; what is not a Section is told like an exception and left out."""
        sections = []
        for name, answer in self._call("report_section", run=run, result=result):
            if isinstance(answer, Section):
                sections.append(answer)
            elif answer is not None:
                self._failed(name, "report_section", f"returned {type(answer).__name__}, not a Section or None")
        return sorted(sections, key=lambda section: section.order)

    def _asked(self, hook: str, **arguments: Any) -> str:
        """Call the hook of every observer; the reason of the first Stop of one that may give it."""
        reason = ""
        for name, answer in self._call(hook, **arguments):
            if isinstance(answer, Stop) and not self.may_stop(name):
                self._failed(name, hook, "asks to stop, but its plugin does not answer key_parts, so nothing is done")
            elif isinstance(answer, Stop):
                reason = reason or f"observer '{name}': {answer.reason}"
        return reason

    def _call(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        answers: list[tuple[str, Any]] = []
        if self.manager is None:
            return answers
        for impl in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if impl.wrapper or impl.hookwrapper:
                what = f"is a wrapper, at {place_of(impl.function)}; observers are called apart and cannot be wrapped"
                self._failed(impl.plugin_name, hook, what)
                continue
            start = time.perf_counter()
            try:
                answers.append((impl.plugin_name, impl.function(*[_copy(arguments[name]) for name in impl.argnames])))
            except Exception as error:  # a stranger's observer may raise anything; the run goes on
                self._failed(impl.plugin_name, hook, f"failed: {describe(error)}, at {raised_at(error)}")
            finally:
                self.seconds_by_plugin[impl.plugin_name] += time.perf_counter() - start
        return answers

    def _failed(self, plugin: str, hook: str, what: str) -> None:
        self.failures[plugin, hook] += 1
        if self.failures[plugin, hook] == 1:
            self.warn(f"observer '{plugin}': {hook} {what} (the run goes on; told once)")


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
