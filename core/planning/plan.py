"""What a plan says: its stages with keys, parents and roles, before anything heavy starts. Torch-free.

A plan is a chain of stages. Each has a key: the hash of everything its artifact depends on. A finished, verified
artifact with that key is reused; an interrupted run with that key is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.config.combinations import changes_base
from core.data.dataset import Dataset
from core.planning.ledger import Found
from core.planning.plan_record import PlanRecord, StageEntry, StageOwner, StagePreview
from core.platform.owners import Registered
from core.platform.specs import EngineSpec, OptimizerSpec, RewardSpec, StageSpec
from core.settings.schema import RunConfig
from core.tokens.heatmap import TokenRow


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
    plugin_parts: dict[str, Any] = field(default_factory=dict)
    """What of plugins' code the result depends on, see core.planning.plugin_code."""
    parents: dict[str, StagePlan] = field(default_factory=dict)
    state: str = "run"
    run_dir: Path | None = None
    warnings: list[str] = field(default_factory=list)
    preview: StagePreview = field(default_factory=StagePreview)
    """Empty until it is made, see core.commands.preview.estimate."""
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

    def entry(self) -> StageEntry:
        """The stage in short, as every plan.json of its chain has it."""
        return StageEntry(self.stage, self.algorithm, self.key, self.state, str(self.run_dir) if self.run_dir else None)

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

    def record(
        self, current: StagePlan | None = None, warnings: Sequence[str] = (), quarantined: int | None = None
    ) -> PlanRecord:
        """What plan.json says of the stage `current` (default: the target).

        warnings, quarantined: those of the run, where it has begun; quarantined counts rows.
        """
        stage = current or self.target
        info = stage.dataset.info
        return PlanRecord(
            stage=stage.stage,
            algorithm=stage.algorithm,
            key=stage.key,
            owner=StageOwner(**stage.owner),
            paper=stage.spec.paper,
            stages=[item.entry() for item in self.stages],
            model=stage.cfg.model.source,
            roles=stage.roles(),
            data=info if quarantined is None else replace(info, quarantined=quarantined),
            optimizer=stage.optimizer.spec.name,
            engine=stage.engine.name if stage.engine else None,
            reward=stage.cfg.reward.name if stage.reward else None,
            judge=stage.judge.name if stage.judge else None,
            preview=stage.preview,
            warnings=list(warnings or stage.warnings),
        )
