"""Arms of a study compared: means over seeds, differences paired by seed with intervals, verdicts on claims.

The 95 % interval of a mean of n seeds is mean ± t · sd / √n with Student's t of n - 1 degrees of freedom. Of few seeds
a bootstrap would know no values beyond those that were seen, and its interval would be too narrow. Torch-free.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.jsonl import METRICS_FILE, read_rows
from core.report.format import number
from core.settings.study_schema import ClaimConfig, Relation, StudyConfig

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 0.975 for 1 to 10 degrees of freedom."""
_Z = 1.959964


@dataclass
class ArmRun:
    """One arm with one seed. state: done, failed, or waiting; first and last: values of the study's metrics, before and
    after training where they were measured twice."""

    arm: str
    seed: int
    key: str = ""
    state: str = "waiting"
    run_dir: str = ""
    seconds: float | None = None
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def read(self, folder: Path, metrics: Sequence[str]) -> None:
        """Take the numbers out of a finished run's folder."""
        self.state, self.run_dir = "done", str(folder)
        for row in read_rows(folder / METRICS_FILE):
            for name in metrics:
                if (value := number(row.get(name))) is not None:
                    self.first.setdefault(name, value)
                    self.last[name] = value


@dataclass(frozen=True)
class Mean:
    """Mean over n seeds, standard deviation, and the 95 % interval; None where n is too small for them."""

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def quantile(degrees: int) -> float:
    """Student's t at 0.975 (beyond 10 degrees of freedom by the expansion around the normal quantile)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = _Z
    terms = (
        (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )  # fmt: skip
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def mean_of(values: Sequence[float]) -> Mean:
    """Mean of one value for each seed."""
    n = len(values)
    if n < 2:
        return Mean(n, values[0] if values else None)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = quantile(n - 1) * sd / math.sqrt(n)
    return Mean(n, mean, sd, mean - half, mean + half)


def values_of(runs: Sequence[ArmRun], arm: str, metric: str) -> dict[int, float]:
    """Seed to value, of the runs that have one."""
    return {run.seed: run.last[metric] for run in runs if run.arm == arm and metric in run.last}


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Mean:
    """left - right, over the seeds that both have."""
    return mean_of([left[seed] - right[seed] for seed in left if seed in right])


def verdict(claim: ClaimConfig, found: Mean) -> str:
    """`seen` where the whole interval lies on the claimed side, `contradicted` where it lies on the other, `open` where
    it holds both, `not measured` without two seeds."""
    if found.low is None or found.high is None:
        return "not measured"
    upward = claim.relation in (Relation.higher, Relation.no_lower)
    low, high = (found.low, found.high) if upward else (-found.high, -found.low)
    border = -claim.margin if claim.relation in (Relation.no_lower, Relation.no_higher) else claim.margin
    if low > border or (low == border and claim.relation in (Relation.no_lower, Relation.no_higher)):
        return "seen"
    return "contradicted" if high < border else "open"


def compare(study: StudyConfig, runs: Sequence[ArmRun]) -> dict[str, Any]:
    """The numbers of study.json: `metrics` with a row for each arm, and `claims`."""
    base = next(iter(study.arms))
    metrics = []
    for metric, label in study.metrics.items():
        starts = [run.first[metric] for run in runs if metric in run.first and metric.startswith("eval/")]
        rows = []
        for arm in study.arms:
            own = values_of(runs, arm, metric)
            versus = None if arm == base else vars(difference(own, values_of(runs, base, metric)))
            rows.append({"arm": arm, **vars(mean_of(list(own.values()))), "values": own, "difference": versus})
        start = statistics.fmean(starts) if starts else None
        metrics.append({"metric": metric, "label": label, "start": start, "arms": rows})
    claims = []
    for claim in study.claims:
        than, than_metric = claim.than or claim.arm, claim.than_metric or claim.metric
        found = difference(values_of(runs, claim.arm, claim.metric), values_of(runs, than, than_metric))
        claims.append({
            "arm": claim.arm, "metric": claim.metric, "relation": claim.relation.value, "than": than,
            "than_metric": than_metric, "margin": claim.margin, **vars(found), "verdict": verdict(claim, found),
        })  # fmt: skip
    return {"baseline": base, "metrics": metrics, "claims": claims}
