"""The measures of `eval.metrics`: built once for a run, taken at each held-out evaluation. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from core.errors import PluginError
from core.platform.owners import Owner
from core.platform.specs import MetricSpec

if TYPE_CHECKING:
    from core.models.roles import Models
    from core.training.run import StageRun


class HeldoutMetrics:
    """What the run measures beside the stage's own evaluation."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.measures: list[tuple[MetricSpec, Owner, Callable[..., Any]]] = []
        for config in run.cfg.eval.metrics:
            entry = run.registry.metrics[config.name]
            build = run.registry.resolve(entry.spec)
            with run.providers.at(entry.owner, f"'{entry.spec.impl}'"):
                self.measures.append((entry.spec, entry.owner, build(config, run)))

    def measure(self, models: Models, data: Any) -> dict[str, float]:
        """`<name>`, or `<name>/<part>` for one of several numbers. Metrics over completions are left out where the
        evaluation made none.

        Raises PluginError for what is no finite number, or where two measures have one name.
        """
        found: dict[str, float] = {}
        requests, self.run.eval_requests = self.run.eval_requests, []
        for spec, owner, function in self.measures:
            if spec.over == "completions" and not requests:
                self.run.warn(f"eval.metrics: '{spec.name}' needs held-out completions, and this stage made none")
                continue
            work = partial(function, requests) if spec.over == "completions" else partial(function, models, data)
            with self.run.providers.at(owner, f"the metric '{spec.name}'"):
                answer = work()
            parts = answer if isinstance(answer, dict) else {"": answer}
            for part, value in parts.items():
                name = f"{spec.name}/{part}" if part else spec.name
                if name in found:
                    raise PluginError(f"two of eval.metrics give '{name}'", str(owner), "leave one of them out")
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise PluginError(f"the metric '{name}' is {value!r}, not a finite number", str(owner))
                found[name] = float(value)
        self.run.metric_names = list(found)
        return found
