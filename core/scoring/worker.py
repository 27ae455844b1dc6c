"""A scoring process: `python -m core.scoring.worker`, started and killed by core.scoring.pool.WorkerPool.

Speaks JSON lines. In: first {"impl", "config", "values"}, then one request a line (see core.scoring.pool).
Out: first {"error": null or text}, then [index, value, error, parts] for each request, in order. Ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import describe
from core.scoring.guarded import ScorerContext, guarded_call, resolve
from core.scoring.pool import decode_request
from core.settings.convert import from_plain
from core.types import Score

GRACE_S = 5.0
"""A worker whose parent died ends by itself so long after its request's time limit."""
MEMORY_BYTES = 4 << 30
"""Soft limit of the data segment; beyond it the scorer gets a MemoryError. A scorer may raise it in `build`."""


def main() -> None:
    """Serve requests until the input ends or nobody reads the answers any more."""
    with contextlib.suppress(BrokenPipeError):
        serve()


def serve() -> None:
    """Build the scorer and answer its requests."""
    requests, answer = _take_wire()
    _limit_memory()
    hello = json.loads(requests.readline())
    try:
        config = from_plain(resolve(hello["config"]), hello["values"])
        scorer = resolve(hello["impl"])(config, ScorerContext())
    except BaseException as error:  # also SystemExit: the parent must hear of it
        answer({"error": describe(error)})
        return
    answer({"error": None})
    for line in requests:
        # The parent kills a worker that is over its time. This timer does it when the parent is gone; its default
        # action ends the process even inside a C loop that never gives the interpreter back.
        signal.setitimer(signal.ITIMER_REAL, config.timeout_s + GRACE_S)
        index, request = decode_request(line)
        try:
            [score] = guarded_call(scorer, [request])
        except BaseException as error:
            score = Score(None, error=describe(error))
        answer([index, score.value, score.error, score.parts, score.text])
        signal.setitimer(signal.ITIMER_REAL, 0)


def _take_wire() -> tuple[BinaryIO, Callable[[Any], None]]:
    """Keep stdin and stdout for the protocol: a scorer that reads finds nothing, one that prints writes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)

    def answer(reply: Any) -> None:
        data = json.dumps(reply, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(out, data) :]

    return requests, answer


def _limit_memory() -> None:
    """Cap the data segment, and let the kernel sacrifice this process before the trainer."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    with contextlib.suppress(OSError):  # no such file outside Linux
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main()
