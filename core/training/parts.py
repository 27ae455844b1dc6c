"""The plugins' parts of a stage at work: rollout engines, scorers, the judge, the optimizer. Built when they are first
asked for; torch-free until then."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

from core.data.records import answer_kind
from core.errors import ConfigError, PluginError, TrainingError
from core.planning.plan import StagePlan
from core.platform.providers import Providers, Watched
from core.platform.registry import Registry
from core.platform.specs import MetricSpec, TextSetSpec
from core.scoring.guarded import GuardedScorer, ScorerContext, find_spec
from core.settings.schema import ModelConfig, RewardConfig, ShapedPeftConfig
from core.training.log import RunLog
from core.types import RolloutEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from core.models.by_role import Shape
    from core.models.guests import Guest
    from core.models.roles import Models
    from core.models.start import Start

ENGINE_METHODS = ("generate", "score", "sync", "close")
"""What is watched of an engine."""


class Parts:
    """What samples, scores and optimizes for a stage. The loop says which policy it holds; everyone else asks."""

    def __init__(self, plan: StagePlan, registry: Registry, providers: Providers, log: RunLog) -> None:
        self.registry, self.providers = registry, providers
        self._plan, self._cfg, self._log = plan, plan.cfg, log
        self._models: Models | None = None
        self._version = 0
        self._difference = 0.0
        self._engines: dict[str, RolloutEngine] = {}
        self._synced: dict[str, int] = {}
        self._scorers: dict[str, GuardedScorer] = {}

    def hold(self, models: Models, version: int) -> None:
        """The models that engines and scorers work with from now on.

        version: steps that the policy has made; an engine that holds an earlier one gets the weights when it is asked
        for.
        """
        self._models, self._version = models, version

    @property
    def models(self) -> Models:
        """The models as they are now. Raises TrainingError before they stand."""
        if self._models is None:
            raise TrainingError("the models do not stand yet", self._plan.stage, "ask for engines and scorers later")
        return self._models

    @property
    def sync_difference(self) -> float:
        """Mean log-probability difference in nats between engine and trainer at the last hand-over of weights."""
        return self._difference

    # -- engines -----------------------------------------------------------------------------------------------------

    def engine(self) -> RolloutEngine:
        """The stage's rollout engine, holding the policy's present weights.

        Raises: PluginError for a stage that has none; TrainingError when engine and trainer disagree about a fixed text
        after the weights were handed over.
        """
        if self._plan.engine is None:
            mend = "set rollouts=True or builds=True in its StageSpec"
            raise PluginError(f"the stage '{self._plan.stage}' has no rollout engine", "", mend)
        return self._ready(self._plan.engine.name)

    def evaluation_engine(self) -> RolloutEngine:
        """The stage's engine where its steps use one, else the one that samples from the trainer's own weights."""
        if self._plan.spec.rollouts:
            return self.engine()
        return self._ready(self._sharing_engine())

    def guest(self, source: str) -> Guest:
        """A model beside those of the run, frozen, with an engine of its own. source: as model.source."""
        from core.models.guests import Guest

        cfg = dataclasses.replace(self._cfg, model=ModelConfig(source=source))
        name = self._sharing_engine()
        spec = self.registry.engines[name].spec

        def build(start: Start, module: nn.Module) -> RolloutEngine:
            return cast(RolloutEngine, self.registry.resolve(spec)(spec.config(name=name), start, module))

        return Guest(dataclasses.replace(self.models.start, cfg=cfg, weights=None, own_codec=None), build)

    def _sharing_engine(self) -> str:
        """Name of the engine that samples from the trainer's own weights."""
        sharing = [entry.spec for entry in self.registry.engines.values() if entry.spec.shares_policy]
        if sharing:
            return max(sharing, key=lambda spec: spec.priority).name
        raise PluginError("no rollout engine samples from the trainer's own weights", "", "enable rollout_transformers")

    def _ready(self, name: str) -> RolloutEngine:
        engine = self._engines.get(name)
        spec = self.registry.engines[name].spec
        models = self.models
        if engine is None:
            with self._log.timed("engine start"):
                if not spec.shares_policy:
                    self._log.say(f"starting the rollout engine '{name}'")
                config = self._cfg.rollout if self._cfg.rollout.name in (name, "auto") else spec.config(name=name)
                if not isinstance(config, spec.config):
                    config = spec.config(name=name, sync_tolerance=config.sync_tolerance)
                owner = self.registry.engines[name].owner
                assert models.policy is not None
                with self.providers.at(owner, f"'{spec.impl}'"):
                    built = self.registry.resolve(spec)(config, models.start, models.policy.module)
                engine = cast(RolloutEngine, Watched(built, self.providers, owner, ENGINE_METHODS))
                self._engines[name] = engine
        if self._synced.get(name) != self._version:
            from core.models.sync import hand_over

            with self._log.timed("sync"):
                difference = hand_over(models, engine, spec, self._version)
            if not spec.shares_policy:
                self._difference = difference
            self._synced[name] = self._version
        return engine

    # -- scorers -----------------------------------------------------------------------------------------------------

    def reward(self) -> GuardedScorer | None:
        """The reward that the stage trains on; None for a stage without rollouts."""
        return self._scorer("reward", self._cfg.reward) if self._plan.reward else None

    def judge(self) -> GuardedScorer:
        """What tells right answers from wrong ones where the stage makes its examples: a score of at least
        `config.threshold` is right, an error is not."""
        assert self._plan.judge is not None
        return self._scorer("judge", self._cfg.judge)

    def true_scorer(self) -> GuardedScorer | None:
        """The scorer that tells whether the policy got better; None where nothing but the reward can."""
        name = self._cfg.eval.scorer
        if name == "auto":
            name = self._answer_scorer()
        if not name:
            return None
        same = self._plan.reward and name == self._cfg.reward.name
        config = self._cfg.reward if same else self.registry.reward_models[name].spec.config(name=name)
        return self._scorer("true", config)

    def rule(self, name: str) -> GuardedScorer:
        """The reward model `name` with its default settings, for checks of answers.

        Raises ConfigError for a name that is not registered, or one that needs settings or a model.
        """
        spec = find_spec(name, self._reward_specs())
        if spec.needs_model:
            raise ConfigError(f"'{name}' needs a reward model, which this stage has not", mend="choose a rule")
        config = spec.config(name=name)
        config.check()
        return self._scorer(f"rule {name}", config)

    def reward_errors(self) -> int:
        """Error scores given so far, by all scorers."""
        return sum(scorer.errors for scorer in self._scorers.values())

    def _answer_scorer(self) -> str:
        """The reward model for the kind of answers that the held-out records carry; empty where they carry none."""
        kind = answer_kind([record.answer for record in self._plan.dataset.heldout_prompts])
        if not kind:
            return ""
        fitting = (name for name, entry in self.registry.reward_models.items() if entry.spec.answers == kind)
        return next(fitting, "")

    def _reward_specs(self) -> dict[str, Any]:
        return {key: entry.spec for key, entry in self.registry.reward_models.items()}

    def _scorer(self, name: str, config: RewardConfig) -> GuardedScorer:
        if name not in self._scorers:
            specs, start = self._reward_specs(), self.models.start
            context = ScorerContext(parts=self, device=start.device, dtype=start.dtype, specs=specs)
            owner = self.registry.reward_models[config.name].owner
            with self.providers.at(owner, f"'{specs[config.name].impl}'"):
                scorer = GuardedScorer(specs[config.name], config, context)
            self._scorers[name] = cast(GuardedScorer, Watched(scorer, self.providers, owner, ("score",)))
        return self._scorers[name]

    # -- the others --------------------------------------------------------------------------------------------------

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The run's optimizer over torch's groups of parameters. Its steps are watched like any provider's work."""
        spec, owner = self._plan.optimizer.spec, self._plan.optimizer.owner
        with self.providers.at(owner, f"'{spec.impl}'"):
            built = self.registry.resolve(spec)(self._cfg.optimizer, groups)
        return cast("torch.optim.Optimizer", Watched(built, self.providers, owner, ("step",)))

    def shape(self) -> Shape | None:
        """What the chosen peft method of a plugin does to a fresh adapter; None for peft's own methods."""
        cfg = self._cfg.peft
        if not isinstance(cfg, ShapedPeftConfig):
            return None
        entry = self.registry.peft_methods[cfg.shaped_by]

        def shape(module: nn.Module) -> None:
            with self.providers.at(entry.owner, f"'{entry.spec.impl}'"):
                self.registry.resolve(entry.spec)(module, cfg)

        return shape

    def measures(self, run: Any) -> list[tuple[MetricSpec, Callable[..., Any]]]:
        """The chosen `eval.metrics`, built for `run`; a call of one is watched."""
        found: list[tuple[MetricSpec, Callable[..., Any]]] = []
        for config in self._cfg.eval.metrics:
            entry = self.registry.metrics[config.name]
            build = self.registry.resolve(entry.spec)
            with self.providers.at(entry.owner, f"'{entry.spec.impl}'"):
                measure = build(config, run)
            found.append((entry.spec, self.providers.watched(measure, entry.owner, f"the metric '{entry.spec.name}'")))
        return found

    def text_sets(self, kind: str) -> dict[str, TextSetSpec]:
        """The registered text sets of a kind, by name."""
        return {name: entry.spec for name, entry in self.registry.text_sets.items() if entry.spec.kind == kind}

    def close_engines(self) -> None:
        """Give the rollout engines' memory back; one that is asked for again is started again."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._synced.clear()

    def close(self) -> None:
        """Give engines, workers and models back."""
        self.close_engines()
        for scorer in self._scorers.values():
            scorer.close()
        self._scorers.clear()
        self._models = None
