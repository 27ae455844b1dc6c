"""Processes forked from a server that has imported what is slow to import: a fresh start without its seconds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any
from unittest import mock

PRELOAD = [
    "core.testing.warm", "core.training.run_stage", "core.training.opening", "core.artifacts.verify", "peft",
    "transformers.models.llama.modeling_llama",
]  # fmt: skip
"""Modules that the server imports before the first process is asked for."""

_server: Any = forkserver._forkserver


class _Parent:
    """What a process from the server takes over from the one that asked for it: terminal, environment, whether it
    ignores SIGINT, the server."""

    def __getstate__(self) -> tuple[list[Any], dict[str, str], bool, str]:
        terminal = [reduction.DupFd(number) for number in (1, 2)]
        ignoring = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return terminal, dict(os.environ), ignoring, _server._forkserver_address

    def __setstate__(self, sent: tuple[list[Any], dict[str, str], bool, str]) -> None:
        terminal, environment, ignoring, address = sent
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignoring else signal.default_int_handler)
        for number, fd in zip((1, 2), terminal, strict=True):
            given = fd.detach()
            os.dup2(given, number)
            os.close(given)
        os.environ.clear()
        os.environ.update(environment)
        _server._forkserver_address, _server.ensure_running = address, lambda: None


def start(work: Callable[..., Any], *arguments: Any, name: str | None = None) -> Any:
    """`work(*arguments)` in a process of its own, with this one's environment, `sys.path`, folder and terminal.

    work: a function of a module that the process can import; it and its arguments are pickled.
    Returns: the started `multiprocessing.Process`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    with mock.patch.dict(os.environ, {"PYTHONPATH": path}):  # where the server finds what it imports
        _server.ensure_running()
    process = context.Process(target=_begin, args=(_Parent(), work, arguments), name=name)
    process.start()
    return process


def _begin(_: _Parent, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # a collection at the end of a run need not go through what the server has loaded
    work(*arguments)


def verify_here(job: dict[str, Any]) -> dict[str, Any]:
    """The verification without a process of its own, which would cost more than all the rest of a tiny run."""
    from core.artifacts.verify import check_artifact

    checks = check_artifact(job)
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def verify_apart(job: dict[str, Any]) -> dict[str, Any]:
    """The verification in a process from the server, which has never seen the run either."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = start(_verify, job, sender)
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        found = _not_reloaded(f"the process ended with code {process.exitcode}")
    process.join()
    return found


def _verify(job: dict[str, Any], sender: Any) -> None:
    try:
        sender.send(verify_here(job))
    except Exception as error:
        sender.send(_not_reloaded(f"{type(error).__name__}: {error}"))


def _not_reloaded(detail: str) -> dict[str, Any]:
    return {"ok": False, "checks": [{"name": "reload", "ok": False, "detail": detail}]}


@contextmanager
def warm_stages() -> Iterator[None]:
    """The stages of a chain have processes from the server instead of fresh ones, and so have their verifications."""
    from core.training import stage_process

    stand_in = types.SimpleNamespace(Process=_Asked)
    own = types.SimpleNamespace(**{**vars(multiprocessing), "get_context": lambda _: stand_in})
    with mock.patch.object(stage_process, "multiprocessing", own):
        yield


class _Asked:
    """A process from the server, made as `Process` is."""

    def __init__(self, *, target: Callable[..., Any], args: tuple[Any, ...], name: str) -> None:
        self._ask = (_stage, target, args)
        self._name = name

    def start(self) -> None:
        self._process = start(*self._ask, name=self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_process"], name)


def _stage(target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import core.artifacts.artifact

    with mock.patch.object(core.artifacts.artifact, "verify_in_fresh_process", verify_apart):
        target(*arguments)
