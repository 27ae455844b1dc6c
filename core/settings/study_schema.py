"""A study: arms that are compared on the same seeds, and what is claimed of them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from core.settings.ranges import Checked, number
from core.settings.rules import require


class Relation(Enum):
    """What a claim says of two numbers."""

    higher = "higher"
    lower = "lower"
    no_lower = "no_lower"
    """Not lower by more than the margin."""
    no_higher = "no_higher"
    """Not higher by more than the margin."""


@dataclass
class ClaimConfig(Checked):
    """`metric` of `arm` is higher (lower, …) than `than_metric` of `than`."""

    arm: str = ""
    """Name of an arm."""
    metric: str = ""
    """One of the study's metrics."""
    relation: Relation = Relation.higher
    """What is claimed."""
    than: str = ""
    """The arm compared with; unset takes the same arm."""
    than_metric: str = ""
    """The metric compared with; unset takes the same metric."""
    margin: float = number(0.0, at_least=0)
    """A difference of this size still counts as none, in the metric's unit."""


@dataclass
class StudyConfig(Checked):
    """Runs that differ in their arm and their seed alone."""

    title: str = ""
    """What is compared, in a few words."""
    paper: str = ""
    """Where the claims come from."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Name to overrides, as typed on a command line. The first one is what the others are compared with."""
    seeds: list[int] = number(lambda: [1, 2, 3], at_least=0, below=2**32)
    """Values of `runtime.seed`; each arm runs once with each."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Name in metrics.jsonl to what it is called in the table; the last value of a run counts."""
    claims: list[ClaimConfig] = field(default_factory=list)
    """What is claimed."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that must stand in `data_dir`, and where each can be fetched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.seeds)) == len(self.seeds), "study.seeds", "without repetition", self.seeds)
        for place, claim in enumerate(self.claims):
            where = f"study.claims[{place}]"
            other = claim.than_metric or claim.metric
            for key, name, known in (
                ("arm", claim.arm, self.arms), ("than", claim.than or claim.arm, self.arms),
                ("metric", claim.metric, self.metrics), ("than_metric", other, self.metrics),
            ):  # fmt: skip
                require(name in known, f"{where}.{key}", f"one of {', '.join(known)}", name)
