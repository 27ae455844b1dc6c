"""The plugins' parts of a stage run, built when they are first asked for: rollout engines, scorers, the optimizer.

Torch-free until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from core.data.records import answer_kind
from core.errors import ConfigError, PluginError
from core.planning.plan import StagePlan
from core.platform.providers import Providers, Watched
from core.platform.registry import Registry
from core.scoring.guarded import GuardedScorer, ScorerContext, find_spec
from core.settings.schema import RunConfig
from core.types import RolloutEngine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from core.training.run import StageRun

ENGINE_METHODS = ("generate", "score", "sync", "close")
"""What is watched of an engine."""


class ChosenParts:
    """The part of a StageRun that samples, scores and optimizes."""

    plan: StagePlan
    cfg: RunConfig
    registry: Registry
    providers: Providers
    policy_version: int

    if TYPE_CHECKING:

        @property
        def device(self) -> torch.device: ...
        @property
        def dtype(self) -> torch.dtype: ...
        def say(self, text: str) -> None: ...
        def timed(self, part: str) -> AbstractContextManager[None]: ...

    def __init__(self) -> None:
        self._engines: dict[str, RolloutEngine] = {}
        self._scorers: dict[str, GuardedScorer] = {}
        self._synced: dict[str, int] = {}

    @property
    def _run(self) -> StageRun:
        return cast("StageRun", self)

    def engine(self) -> RolloutEngine:
        """The stage's rollout engine, holding the policy's present weights.

        Raises TrainingError when engine and trainer disagree about a fixed prompt after the weights were handed over.
        """
        assert self.plan.engine is not None
        return self._ready(self.plan.engine.name)

    def evaluation_engine(self) -> RolloutEngine:
        """The stage's engine where its steps use one, else the one that samples from the trainer's own weights."""
        if self.plan.spec.rollouts:
            return self.engine()
        return self._ready(self.sharing_engine())

    def sharing_engine(self) -> str:
        """Name of the engine that samples from the trainer's own weights."""
        sharing = [entry.spec for entry in self.registry.engines.values() if entry.spec.shares_policy]
        if sharing:
            return max(sharing, key=lambda spec: spec.priority).name
        raise PluginError("no rollout engine samples from the trainer's own weights", "", "enable rollout_transformers")

    def _ready(self, name: str) -> RolloutEngine:
        engine = self._engines.get(name)
        spec = self.registry.engines[name].spec
        if engine is None:
            with self.timed("engine start"):
                if not spec.shares_policy:
                    self.say(f"starting the rollout engine '{name}'")
                config = self.cfg.rollout if self.cfg.rollout.name in (name, "auto") else spec.config(name=name)
                if not isinstance(config, spec.config):
                    config = spec.config(name=name, sync_tolerance=config.sync_tolerance)
                owner = self.registry.engines[name].owner
                with self.providers.at(owner, f"'{spec.impl}'"):
                    built = self.registry.resolve(spec)(config, self._run)
                engine = cast(RolloutEngine, Watched(built, self.providers, owner, ENGINE_METHODS))
                self._engines[name] = engine
        if self._synced.get(name) != self.policy_version:
            from core.models.sync import hand_over

            with self.timed("sync"):
                hand_over(self._run, engine, spec)
            self._synced[name] = self.policy_version
        return engine

    def _scorer(self, name: str, config: Any) -> GuardedScorer:
        if name not in self._scorers:
            specs = {key: entry.spec for key, entry in self.registry.reward_models.items()}
            context = ScorerContext(run=self._run, device=self.device, dtype=self.dtype, specs=specs)
            owner = self.registry.reward_models[config.name].owner
            with self.providers.at(owner, f"'{specs[config.name].impl}'"):
                scorer = GuardedScorer(specs[config.name], config, context)
            self._scorers[name] = cast(GuardedScorer, Watched(scorer, self.providers, owner, ("score",)))
        return self._scorers[name]

    def rule_scorer(self, name: str) -> GuardedScorer:
        """The reward model `name` with its default settings, for a stage that checks answers while it builds data.
        Raises ConfigError for a name that is not registered, or one that needs settings or a model."""
        specs = {key: entry.spec for key, entry in self.registry.reward_models.items()}
        spec = find_spec(name, specs)
        if spec.needs_model:
            raise ConfigError(f"'{name}' needs a reward model, which this stage has not", mend="choose a rule")
        config = spec.config(name=name)
        config.check()
        return self._scorer(f"rule {name}", config)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The run's optimizer over torch's groups of parameters. Its steps are watched like any provider's work."""
        spec, owner = self.plan.optimizer.spec, self.plan.optimizer.owner
        with self.providers.at(owner, f"'{spec.impl}'"):
            built = self.registry.resolve(spec)(self.cfg.optimizer, groups)
        return cast("torch.optim.Optimizer", Watched(built, self.providers, owner, ("step",)))

    def scorers(self) -> list[GuardedScorer]:
        """The scorers that were needed so far."""
        return list(self._scorers.values())

    def reward_scorer(self) -> GuardedScorer | None:
        """The reward that the stage trains on; None for a stage without rollouts."""
        return self._scorer("reward", self.cfg.reward) if self.plan.reward else None

    def judge(self) -> GuardedScorer:
        """What tells right answers from wrong ones where the stage makes its examples: a score of at least
        `config.threshold` is right, an error is not."""
        assert self.plan.judge is not None
        return self._scorer("judge", self.cfg.judge)

    def _answer_scorer(self) -> str:
        """The reward model for the kind of answers that the held-out records carry; empty where they carry none."""
        kind = answer_kind([record.answer for record in self.plan.dataset.heldout_prompts])
        if not kind:
            return ""
        fitting = (name for name, entry in self.registry.reward_models.items() if entry.spec.answers == kind)
        return next(fitting, "")

    def true_scorer(self) -> GuardedScorer | None:
        """The scorer that tells whether the policy got better; None where nothing but the reward can."""
        name = self.cfg.eval.scorer
        if name == "auto":
            name = self._answer_scorer()
        if not name:
            return None
        same = self.plan.reward and name == self.cfg.reward.name
        return self._scorer(
            "true", self.cfg.reward if same else self.registry.reward_models[name].spec.config(name=name)
        )

    def close_engines(self) -> None:
        """Give the rollout engines' memory back."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._synced.clear()

    def close_scorers(self) -> None:
        """Give the scorers' workers and models back."""
        for scorer in self._scorers.values():
            scorer.close()
        self._scorers.clear()
