"""Worker processes for scorers that may hang or crash: started on demand, killed at a request's deadline, replaced.

Torch-free at import. POSIX only, like the signals it uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import typing
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from core.errors import PluginError, describe
from core.types import Score, ScoreRequest

if typing.TYPE_CHECKING:
    from core.settings.schema import RewardConfig

START_TIMEOUT_S = 120.0
"""Wall-clock limit in seconds for a worker to import its scorer."""
WINDOW = 16
"""Most requests that lie in a worker's pipe at once; each still has its own deadline."""


def import_path(cls: type[Any]) -> str:
    """ "module:Class" that another process can import. Raises: PluginError for a local or __main__ class."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise PluginError(
            f"config class {cls.__qualname__!r} of an isolated reward model cannot be imported by its worker",
            mend="define it at the top level of an importable module",
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def encode_request(index: int, request: ScoreRequest) -> bytes:
    """One line for a worker. Raises: TypeError when `meta` holds what JSON cannot."""
    return json.dumps([index, vars(request)], separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> tuple[int, ScoreRequest]:
    """Inverse of encode_request."""
    index, values = json.loads(line)
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
    return index, ScoreRequest(**fields)


class _Worker:
    """One worker process and what lies in its pipes."""

    def __init__(self, hello: bytes) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or str(os.getcwd()) for p in sys.path)}  # noqa: PTH109
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "core.scoring.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.write_fd, self.read_fd = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.write_fd, False)
        os.set_blocking(self.read_fd, False)
        self.ready = False
        self.broken = False
        self.sent: deque[int] = deque()
        """Indexes of the requests it has, oldest first; the oldest is being scored."""
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._outgoing = bytearray(hello)
        self._incoming = bytearray()

    @property
    def writing(self) -> bool:
        return bool(self._outgoing) and not self.broken

    def send(self, data: bytes) -> None:
        self._outgoing += data

    def flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: os.write(self.write_fd, self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # it died; the reading side will say so
            self._outgoing.clear()

    def lines(self) -> list[Any]:
        """Decoded replies that came in; sets `broken` at the end of the stream."""
        try:
            while True:
                data = os.read(self.read_fd, 65536)
                if not data:
                    self.broken = True
                    break
                self._incoming += data
                if len(data) < 65536:
                    break
        except BlockingIOError:
            pass
        *complete, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [json.loads(line) for line in complete]

    def stop(self, linger_s: float = 0.0) -> str:
        """Kill it with all its children and reap it; says how it ended. linger_s: time left to end by itself."""
        if self.process.returncode is None and linger_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(linger_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"exited with code {code}"


def _stop_all(workers: list[_Worker], owner: int) -> None:
    """Kill the workers, unless this is a forked copy of the process that owns them."""
    while workers:
        worker = workers.pop()
        if os.getpid() == owner:
            worker.stop()


class WorkerPool:
    """Worker processes for one isolated scorer. They start at the first request, stay for the next, and are killed and
    replaced when a request is over its time or takes the process down; only that request gets the error.

    size: number of processes; min(2, CPUs) by default. The clock of a request starts when its worker turns to it;
    neither waiting in line nor the start of a worker counts.
    """

    def __init__(self, impl: str, config: RewardConfig, size: int | None = None) -> None:
        self.timeout_s = config.timeout_s
        self.size = size or min(2, os.cpu_count() or 1)
        hello = {"impl": impl, "config": import_path(type(config)), "values": dataclasses.asdict(config)}
        try:
            self._hello = json.dumps(hello).encode() + b"\n"
        except TypeError as error:
            raise PluginError(f"config of isolated reward model {config.name!r} is not JSON: {error}") from error
        self.started = 0
        """Processes started so far."""
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._finalizer: Callable[[], Any] = weakref.finalize(self, _stop_all, self._workers, self._owner)

    def close(self) -> None:
        """Kill and reap all workers; the next request starts new ones."""
        _stop_all(self._workers, self._owner)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order. Raises: PluginError when a worker cannot load the scorer."""
        if os.getpid() != self._owner:  # forked: the workers belong to the parent
            self._workers = []
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)
        try:
            return self._score(requests)
        except BaseException:  # also an interrupt: replies still in the pipes would be taken for the next call's
            self.close()
            raise

    def _score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        scores: list[Score | None] = [None] * len(requests)
        queue: deque[tuple[int, bytes]] = deque()
        for index, request in enumerate(requests):
            try:
                queue.append((index, encode_request(index, request)))
            except (TypeError, ValueError) as error:
                scores[index] = Score(None, error=f"the request cannot be sent to a worker: {describe(error)}")
        lines = dict(queue)
        for worker in list(self._workers):
            if worker.process.poll() is not None:  # died while idle
                self._drop(worker)
        while queue or any(worker.sent for worker in self._workers):
            self._fill(queue)
            self._wait()
            for worker in list(self._workers):
                self._read(worker, scores)
                if worker.broken:
                    how = worker.stop(linger_s=1.0)
                    self._fail(worker, f"the worker {how}", scores, queue, lines)
                elif time.monotonic() > worker.deadline and (worker.sent or not worker.ready):
                    worker.stop()
                    limit = self.timeout_s if worker.ready else START_TIMEOUT_S
                    self._fail(worker, f"timed out after {limit:g} s", scores, queue, lines)
        return [score or Score(None, error="the worker gave no answer") for score in scores]

    def _fill(self, queue: deque[tuple[int, bytes]]) -> None:
        """Start missing workers and hand out requests: up to WINDOW to one worker, few when few are left."""
        while len(self._workers) < min(self.size, len(queue)):
            self._workers.append(_Worker(self._hello))
            self.started += 1
        window = max(1, min(WINDOW, len(queue) // (4 * self.size)))
        for worker in self._workers:
            if worker.ready and queue and len(worker.sent) <= window // 2:
                if not worker.sent:
                    worker.deadline = time.monotonic() + self.timeout_s
                while queue and len(worker.sent) < window:
                    index, line = queue.popleft()
                    worker.sent.append(index)
                    worker.send(line)
            worker.flush()

    def _wait(self) -> None:
        """Sleep until a worker says something, takes more, or is over its time."""
        poll = select.poll()
        busy = [worker for worker in self._workers if worker.sent or not worker.ready]
        for worker in busy:
            poll.register(worker.read_fd, select.POLLIN)
            if worker.writing:
                poll.register(worker.write_fd, select.POLLOUT)
        left = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
        poll.poll(min(max(0, math.ceil(left * 1000)), 2**31 - 1))

    def _read(self, worker: _Worker, scores: list[Score | None]) -> None:
        for reply in worker.lines():
            if not worker.ready:
                if reply.get("error"):
                    raise PluginError(f"a scoring worker cannot load its scorer: {reply['error']}")
                worker.ready = True
                worker.deadline = math.inf
                continue
            index, value, error, parts, text = reply
            expected = worker.sent.popleft()
            if index != expected:
                raise PluginError(f"a scoring worker answered request {index} instead of {expected}")
            scores[index] = Score(value, error=error, parts=parts, text=text)
            worker.deadline = time.monotonic() + self.timeout_s

    def _fail(
        self, worker: _Worker, reason: str, scores: list[Score | None], queue: deque[tuple[int, bytes]],
        lines: dict[int, bytes],
    ) -> None:  # fmt: skip
        """Give the oldest request of a stopped worker the error, put the others back, forget the worker."""
        self._workers.remove(worker)
        if not worker.ready:
            raise PluginError(f"a scoring worker cannot start: {reason}", mend="see its messages on standard error")
        if worker.sent:
            scores[worker.sent.popleft()] = Score(None, error=reason)
            queue.extendleft((index, lines[index]) for index in reversed(worker.sent))

    def _drop(self, worker: _Worker) -> None:
        worker.stop()
        self._workers.remove(worker)
