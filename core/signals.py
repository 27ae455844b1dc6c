"""Signals that ask a process to end: those of Ctrl-C, Slurm, Kubernetes, `docker stop`, a closed terminal. Torch-free.

The first one is raised as Interrupted wherever the main thread is, or at the end of the `held` block that it is in. A
second one ends the process at once, and the processes that it has started. Signals of one moment count as one: a
terminal sends to a whole group of processes, and a launcher or a parent passes on to its children what it gets.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_MOMENT_S = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. number: which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """What a process ends with that was interrupted: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(error, "number", signal.SIGINT)


@dataclass
class _State:
    """What this process has been asked."""

    obeying: bool = False
    first: int = 0
    """The signal that came first; 0 before."""
    raised: bool = False
    held: int = 0


_state = _State()


@contextmanager
def obeyed(told: bool = True) -> Iterator[None]:
    """Within the block the main thread obeys the signals. A signal that the process was started to ignore stays
    ignored, e.g. SIGHUP under nohup. In another thread, or within another such block, nothing is changed.

    told: whether this process says on stderr that it was asked to end.
    """
    if _state.obeying or threading.current_thread() is not threading.main_thread():
        yield
        return
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    _reset(obeying=True)
    wakeup = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    heeded = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _handle) for number in heeded}
    watch = threading.Thread(target=_watch, args=(read_fd, told), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(write_fd)
        watch.join(_ONE_MOMENT_S)  # what it has to tell
        _reset()


@contextmanager
def held() -> Iterator[None]:
    """Within the block no signal is raised; one that came is raised at its end."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held = max(0, _state.held - 1)
    if _state.first and not _state.held and not _state.raised:
        check()


@contextmanager
def let() -> Iterator[None]:
    """Within the block signals are raised, though it is part of a `held` one."""
    before, _state.held = _state.held, 0
    try:
        if before:
            check()
        yield
    finally:
        _state.held = before


@contextmanager
def blocked() -> Iterator[None]:
    """Within the block no signal arrives, and a process that is started in it begins so; see `unblock`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Take the signals that came while they were blocked, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def pending() -> int:
    """The signal that asked this process to end; 0 where none did."""
    return _state.first


def check() -> None:
    """Raise Interrupted where a signal came; code that swallows exceptions may have swallowed it before."""
    if _state.first:
        _state.raised = True
        raise Interrupted(_state.first)


def _reset(obeying: bool = False) -> None:
    _state.obeying, _state.first, _state.raised, _state.held = obeying, 0, False, 0


def _handle(number: int, _frame: object) -> None:
    _state.first = _state.first or number
    if not _state.held and not _state.raised:
        check()


def _watch(read_fd: int, told: bool) -> None:
    """Tell of the first signal and obey the second one, also while the main thread is busy outside Python."""
    began = 0.0
    with os.fdopen(read_fd, "rb", buffering=0) as pipe:
        while arrived := pipe.read(64):
            for number in arrived:
                if number not in SIGNALS:
                    continue
                if not began:
                    began = time.monotonic()
                    if told:
                        _say(f"\n{signal.Signals(number).name}: ending; a second signal ends it at once\n")
                elif time.monotonic() - began >= _ONE_MOMENT_S:
                    _end_at_once(number)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def _end_at_once(number: int) -> None:
    for child in _descendants():
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(128 + number)


def _descendants() -> list[int]:
    """Processes that this one started, and those that they started, where the system tells (Linux)."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _forget() -> None:
    """A forked process neither obeys for its parent nor writes into its pipe."""
    if _state.obeying:
        with suppress(ValueError, OSError):
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                if signal.getsignal(number) is _handle:
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _reset()


os.register_at_fork(after_in_child=_forget)
