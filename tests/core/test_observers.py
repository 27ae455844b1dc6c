"""Observers are called apart: one that fails is named once and survived."""

from __future__ import annotations

import time
from typing import Any

import pluggy
import pytest

from core.platform.hookspecs import PROJECT, ObserverHooks, hookimpl
from core.platform.observers import Observers
from core.types import Section, Stop


def make(*plugins: tuple[str, Any]) -> tuple[Observers, list[str]]:
    manager, told = pluggy.PluginManager(PROJECT), []
    manager.add_hookspecs(ObserverHooks)
    for name, plugin in plugins:
        manager.register(plugin, name=name)
    return Observers(manager, told.append), told


class Broken:
    @hookimpl
    def on_step_end(self, step: int) -> None:
        raise ValueError(f"no disk at step {step}")

    @hookimpl
    def on_run_start(self, run: Any) -> None:
        raise RuntimeError("no server")

    @hookimpl
    def report_section(self, run: Any) -> Any:
        return "a text"


class Keeper:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @hookimpl
    def on_step_end(self, step: int, metrics: dict[str, float]) -> None:
        time.sleep(0.01)
        self.calls.append((step, dict(metrics)))
        metrics.clear()

    @hookimpl
    def on_samples(self, rows: list[dict[str, Any]]) -> None:
        self.calls.append(("rows", len(rows)))
        rows[0].clear()

    @hookimpl
    def on_run_error(self, phase: str, error: BaseException) -> None:
        self.calls.append((phase, error))

    @hookimpl
    def report_section(self, result: dict[str, Any]) -> Section:
        return Section("Kept", "<p></p>", "", order=int(result["order"]))


@pytest.mark.parametrize("order", [("broken", "keeper"), ("keeper", "broken")])
def test_a_failing_observer_is_told_once_and_survived(order: tuple[str, str]) -> None:
    plugins = {"broken": Broken(), "keeper": Keeper()}
    observers, told = make(*[(name, plugins[name]) for name in order])
    observers.on_run_start(run=None)  # type: ignore[arg-type]
    for step in range(5):
        observers.on_step_end(None, step, {"rlhf/loss": 1.0})  # type: ignore[arg-type]
    assert plugins["keeper"].calls == [(step, {"rlhf/loss": 1.0}) for step in range(5)]
    assert len(told) == 2
    assert all("broken" in line for line in told)
    assert "ValueError: no disk at step 0" in told[1]
    assert observers.failures["broken", "on_step_end"] == 5


def test_seconds_are_counted_by_plugin() -> None:
    observers, _ = make(("broken", Broken()), ("keeper", Keeper()))
    for step in range(3):
        observers.on_step_end(None, step, {})  # type: ignore[arg-type]
    assert observers.seconds_by_plugin["keeper"] >= 0.03
    assert 0 < observers.seconds_by_plugin["broken"] < observers.seconds_by_plugin["keeper"]


def test_what_an_observer_changes_stays_with_it() -> None:
    first, second = Keeper(), Keeper()
    observers, told = make(("a", first), ("b", second))
    metrics, rows = {"x/loss": 1.0}, [{"prompt": "p"}]
    observers.on_step_end(None, 1, metrics)  # type: ignore[arg-type]
    observers.on_samples(None, 1, rows)  # type: ignore[arg-type]
    assert metrics == {"x/loss": 1.0} and rows == [{"prompt": "p"}]
    assert first.calls == second.calls == [(1, {"x/loss": 1.0}), ("rows", 1)]
    assert not told


def test_sections_come_in_order_and_others_are_told() -> None:
    class Early:
        @hookimpl
        def report_section(self) -> Section:
            return Section("Early", "", "", order=1)

    observers, told = make(("late", Keeper()), ("early", Early()), ("broken", Broken()))
    titles = [section.title for section in observers.report_sections(None, {"order": 9})]  # type: ignore[arg-type]
    assert titles == ["Early", "Kept"]
    assert told == [
        "observer 'broken': report_section returned str, not a Section or None (the run goes on; told once)"
    ]


def test_an_interrupt_is_not_swallowed() -> None:
    class Interrupted:
        @hookimpl
        def on_step_end(self) -> None:
            raise KeyboardInterrupt

    observers, told = make(("interrupted", Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        observers.on_step_end(None, 1, {})  # type: ignore[arg-type]
    assert not told


def test_a_wrapper_is_refused() -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def on_step_end(self) -> Any:
            return (yield)

    keeper = Keeper()
    observers, told = make(("wrapper", Wrapper()), ("keeper", keeper))
    observers.on_step_end(None, 1, {})  # type: ignore[arg-type]
    assert len(keeper.calls) == 1 and "cannot be wrapped" in told[0]


def test_every_observer_hook_can_be_called() -> None:
    hooks = {name for name in vars(ObserverHooks) if name.startswith("on_")}
    assert hooks <= set(vars(Observers))
    assert "report_section" in vars(ObserverHooks)


class Stopper:
    @hookimpl
    def on_step_end(self, step: int) -> Stop | None:
        return Stop("enough") if step == 2 else None


def test_a_stop_counts_where_the_plugin_may_give_it() -> None:
    observers, told = make(("stopper", Stopper()))
    assert observers.on_step_end(None, 2, {}) == ""
    assert len(told) == 1 and "does not answer key_parts" in told[0]
    observers.may_stop = lambda plugin: plugin == "stopper"
    assert observers.on_step_end(None, 1, {}) == ""
    assert observers.on_step_end(None, 2, {}) == "observer 'stopper': enough"
