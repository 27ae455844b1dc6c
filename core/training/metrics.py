"""The measures of `eval.metrics`: built once for a run, taken at each held-out evaluation."""

from __future__ import annotations

import math
from typing import Any

from core.errors import PluginError
from core.models.roles import Models
from core.training.run import StageRun
from core.types import ScoreRequest


class HeldoutMetrics:
    """What the run measures beside the stage's own evaluation."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.measures = run.parts.measures(run)
        self.names: list[str] = []
        """Names that the last measurement gave."""

    def measure(self, models: Models, data: Any, requests: list[ScoreRequest]) -> dict[str, float]:
        """`<name>`, or `<name>/<part>` for one of several numbers.

        requests: the held-out completions; metrics over completions are left out where there are none.

        Raises PluginError for what is no finite number, or where two measures have one name.
        """
        found: dict[str, float] = {}
        for spec, call in self.measures:
            if spec.over == "completions" and not requests:
                self.run.log.warn(f"eval.metrics: '{spec.name}' needs held-out completions, and this stage made none")
                continue
            answer = call(requests) if spec.over == "completions" else call(models, data)
            parts = answer if isinstance(answer, dict) else {"": answer}
            owner = str(self.run.parts.registry.owner_of(spec))
            for part, value in parts.items():
                name = f"{spec.name}/{part}" if part else spec.name
                if name in found:
                    raise PluginError(f"two of eval.metrics give '{name}'", owner, "leave one of them out")
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise PluginError(f"the metric '{name}' is {value!r}, not a finite number", owner)
                found[name] = float(value)
        self.names = list(found)
        return found
