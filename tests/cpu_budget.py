"""A test that costs more CPU seconds than it may must be marked: see docs/quality.md.

`make test` names such tests at its end; `make test-all` fails them. What a test uses depends on the processor and on
the data beside the checkout, and a landing is not refused for that.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Generator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 5.0
MARGIN = 1.2
"""A test fails above LIMIT_S times this: one and the same test costs that much more on a slower processor."""


def cpu_s() -> float:
    """CPU seconds of this process, of the children that it waited for, and of those that came from the warm server."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime + _forked_s()


def crowded() -> bool:
    """Whether others need the processors too: then every CPU second holds less work, and no test is failed for that."""
    return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)


def _forked_s() -> float:
    server = forkserver._forkserver._forkserver_pid
    try:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no server, or no such file on this system
        return 0.0
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime, cstime


OVER = "CPU seconds over the budget"


class CpuBudget:
    """Names a test whose body and own fixtures used more than LIMIT_S * MARGIN, unless it is marked `slow` or `long`.

    strict: fail it. The setup of a fixture that tests share (class, module, session) is charged to none of them.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.shared_s = self.started_s = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        shared_s, before = self.shared_s, cpu_s()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":  # one that was set up within it is part of it
                self.shared_s = shared_s + cpu_s() - before

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        self.shared_s, self.started_s = 0.0, cpu_s()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        used = cpu_s() - self.started_s - self.shared_s
        marked = any(item.get_closest_marker(name) for name in ("slow", "long"))
        if used > LIMIT_S * MARGIN and not marked and not crowded():
            if self.strict:
                pytest.fail(f"used {used:.1f} CPU seconds, more than {LIMIT_S:g}: mark it slow or long", pytrace=False)
            item.user_properties.append((OVER, round(used, 1)))
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        over = [(seconds, report.nodeid) for reports in terminalreporter.stats.values() for report in reports
                for name, seconds in getattr(report, "user_properties", []) if name == OVER]  # fmt: skip
        if over:
            terminalreporter.section(f"unmarked tests over {LIMIT_S:g} CPU seconds: mark them slow or long")
            for seconds, test in sorted(set(over), reverse=True):
                terminalreporter.line(f"{seconds:5.1f} s  {test}")
