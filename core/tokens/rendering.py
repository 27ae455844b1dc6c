"""A user's template at work: bounded in time, memory and length, whatever it does. Torch-free.

Jinja runs in its sandbox, which keeps a template from reaching anything; that it ends is not the sandbox's concern.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from types import FrameType

CPU_S = 10.0
"""Most CPU seconds of the process in one rendering; a dialogue takes about a millisecond."""
MEMORY_BYTES = 1 << 30
"""Most memory that one rendering may take."""
MOST_CHARACTERS = 1 << 25
"""Longest text that a template may make."""


class TemplateLimit(Exception):
    """A rendering that was stopped; its text says at which limit."""


def render_bounded(render: Callable[[], str], template: str = "") -> str:
    """The text that `render` gives.

    template: source of what is rendered, looked through before; empty where it was.
    Raises: TemplateLimit beyond CPU_S, MEMORY_BYTES or MOST_CHARACTERS, and for powers of numbers, which no limit can
    stop. The limit of time holds in the main thread, that of memory where the system tells its size.
    """
    if template:
        check_operators(template)
    most = _GUARD.most_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if most and soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    try:
        _GUARD.start()
        if most:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        text = render()
    except MemoryError:
        raise TemplateLimit(f"takes more than {MEMORY_BYTES >> 20} MB of memory") from None
    finally:
        if most:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _GUARD.stop()
    if len(text) > MOST_CHARACTERS:
        raise TemplateLimit(f"makes a text of {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    return text


class _Guard:
    """The clock of renderings, and the size of the process. A dialogue is rendered several times, so both are cheap:
    the handler of the clock's signal stays once it is there, and the size is looked up again after FRESH_S."""

    FRESH_S = 0.02
    PAGE = os.sysconf("SC_PAGE_SIZE")

    def __init__(self) -> None:
        self.installed = self.running = False
        self.seen, self.most = 0.0, 0

    def start(self) -> None:
        """Start the clock, in the main thread; signals reach no other."""
        if threading.current_thread() is not threading.main_thread():
            return
        if not self.installed:
            signal.signal(signal.SIGVTALRM, self.expired)
            self.installed = True
        self.running = True
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)

    def stop(self) -> None:
        """Stop the clock that `start` started."""
        if self.running and threading.current_thread() is threading.main_thread():
            self.running = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def expired(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop the rendering; a signal that comes late stops nothing."""
        if self.running:
            raise TemplateLimit(f"takes more than {CPU_S:g} s")

    def most_memory(self) -> int:
        """Address space that the process may have during a rendering; 0 where the system does not tell what it has."""
        now = time.monotonic()
        if now - self.seen > self.FRESH_S:
            self.seen = now
            try:
                with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - half the time of pathlib's
                    self.most = int(file.read().split()[0]) * self.PAGE + MEMORY_BYTES
            except OSError:
                self.most = 0
        return self.most


_GUARD = _Guard()


@lru_cache(maxsize=256)
def check_operators(template: str) -> None:
    """Raises: TemplateLimit for a template with a power of numbers, which no limit of time can stop while it is
    computed. A template that is not Jinja passes: rendering says why."""
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.parser import Parser

    class Generation(Extension):
        """transformers' mark of what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        tree = Environment(extensions=[Generation, LoopControlExtension]).parse(template)
    except TemplateSyntaxError:
        return
    for power in tree.find_all(nodes.Pow):
        raise TemplateLimit(f"raises a number to a power in line {power.lineno}, which may take for ever")
