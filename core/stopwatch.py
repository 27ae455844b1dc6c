"""Wall-clock seconds by name, of blocks that may stand inside each other."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """seconds: by name; a block counts less what blocks inside it count for themselves.

    before: seconds that were counted elsewhere.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float, before or {})
        self._inner: list[float] = []

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count the block for `name`."""
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            self.seconds[name] += whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
