"""What a plan says: its stages with keys, parents and roles, before anything heavy starts. Torch-free.

A plan is a chain of stages. Each has a key: the hash of everything its artifact depends on. A finished, verified
artifact with that key is reused; an interrupted run with that key is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.combinations import changes_base
from core.data.dataset import Dataset
from core.planning.ledger import Found
from core.platform.owners import Registered
from core.platform.specs import EngineSpec, OptimizerSpec, RewardSpec, StageSpec
from core.settings.schema import RunConfig
from core.tokens.heatmap import TokenRow

PLAN_VERSION = 1


@dataclass
class StagePlan:
    """One stage of a plan.

    state: "run", "resume" or "reuse"; run_dir: where it will run, runs or ran.
    parents: earlier stages of the chain whose artifacts it starts from, by kind ("policy", "reward_model").
    """

    spec: StageSpec
    owner: dict[str, str]
    cfg: RunConfig
    dataset: Dataset
    optimizer: Registered[OptimizerSpec]
    engine: EngineSpec | None
    reward: RewardSpec | None
    judge: RewardSpec | None = None
    key: str = ""
    fingerprint: str = ""
    """What identifies the weights that the chain starts from."""
    parents: dict[str, StagePlan] = field(default_factory=dict)
    state: str = "run"
    run_dir: Path | None = None
    warnings: list[str] = field(default_factory=list)
    preview: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by plugin, of the data sources and transforms that made the records."""
    rows: list[TokenRow] = field(default_factory=list)
    """A few training rows as tokens, to be shown."""

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.spec.name

    @property
    def algorithm(self) -> str:
        """Name of the variant, or empty."""
        return self.spec.algorithm

    @property
    def title(self) -> str:
        """Stage and algorithm for people."""
        return f"{self.stage} ({self.algorithm})" if self.algorithm else self.stage

    def parents_json(self) -> list[dict[str, str]]:
        """The artifacts that this stage starts from, as JSON values."""
        return [{"stage": one.stage, "key": one.key, "run_dir": str(one.run_dir)} for one in self.parents.values()]

    def take(self, found: Found) -> None:
        """Take over what the ledger knows of the key."""
        self.state, self.run_dir = found.state, found.folder
        if found.note and found.note not in self.warnings:
            self.warnings.append(found.note)

    def _shares_reference(self) -> bool:
        """Whether the reference is the policy with its adapter off."""
        return self.cfg.peft.method != "none" and not changes_base(self.cfg.peft)

    def roles(self) -> dict[str, str]:
        """Where the weights of each role come from."""
        start = self.parents["policy"].stage if "policy" in self.parents else short_source(self.cfg.model.source)
        sources = {}
        for role in self.spec.roles:
            parent = self.parents.get("reward_model")
            if role == "policy":
                sources[role] = f"{start}"
            elif role == "reference":
                sources[role] = f"{start}, frozen" + (" (adapter off)" if self._shares_reference() else "")
            elif role == "reward_model" and self.spec.makes == role:
                sources[role] = f"{start} with a new head, trained"
            elif role == "reward_model":
                sources[role] = parent.stage if parent else f"reward={self.cfg.reward.name}"
            elif role == "value_model":
                sources[role] = f"{parent.stage}, trained" if parent else f"{start} with a new head, trained"
        return sources


def short_source(source: str) -> str:
    """A model source as people call it: the last part of a path, without the ending of a GGUF file."""
    return source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


@dataclass
class Plan:
    """The chain, the target last."""

    stages: list[StagePlan]

    @property
    def target(self) -> StagePlan:
        """The stage that was asked for."""
        return self.stages[-1]

    def to_json(
        self, current: StagePlan | None = None, warnings: Sequence[str] = (), quarantined: int | None = None
    ) -> dict[str, Any]:
        """Contents of plan.json for the stage `current` (default: the target).

        warnings, quarantined: those of the run, where it has begun.
        """
        stage = current or self.target
        return {
            "version": PLAN_VERSION,
            "stage": stage.stage,
            "algorithm": stage.algorithm,
            "key": stage.key,
            "owner": stage.owner,
            "paper": stage.spec.paper,
            "stages": [
                {
                    "stage": item.stage,
                    "algorithm": item.algorithm,
                    "key": item.key,
                    "state": item.state,
                    "run_dir": str(item.run_dir) if item.run_dir else None,
                }
                for item in self.stages
            ],
            "model": {"source": stage.cfg.model.source},
            "roles": {role: {"from": source} for role, source in stage.roles().items()},
            "data": stage.dataset.info.to_json(quarantined),
            "optimizer": stage.optimizer.spec.name,
            "engine": stage.engine.name if stage.engine else None,
            "reward": stage.cfg.reward.name if stage.reward else None,
            "judge": stage.judge.name if stage.judge else None,
            **stage.preview,
            "warnings": list(warnings or stage.warnings),
        }
