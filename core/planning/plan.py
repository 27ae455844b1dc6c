"""From config to a plan that can be read before anything heavy starts. Torch-free.

A plan is a chain of stages. Each has a key: the hash of everything its artifact depends on. A finished, verified
artifact with that key is reused; an interrupted run with that key is resumed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.combinations import changes_base, check_chain, check_combinations
from core.config.schema import RewardConfig, RunConfig, ShapedPeftConfig
from core.data.building import build_dataset
from core.data.dataset import Dataset
from core.data.transforms import bind_transforms
from core.errors import ConfigError, PluginError
from core.planning.keys import artifact_key
from core.planning.ledger import Found, Ledger
from core.planning.sources import artifact_folder, cache_dir, source_fingerprint
from core.platform.installing import importable
from core.platform.owners import Registered
from core.platform.providers import Providers, blamed
from core.platform.registry import Registry
from core.platform.specs import DataSourceSpec, EngineSpec, OptimizerSpec, RewardSpec, StageSpec
from core.scoring.guarded import find_spec, involved
from core.tokens.heatmap import TokenRow
from core.training.retention_sets import check_retention

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
            if role in ("policy", "teacher"):
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

    def to_json(self, current: StagePlan | None = None) -> dict[str, Any]:
        """Contents of plan.json for the stage `current` (default: the target)."""
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
            "data": stage.dataset.info,
            "optimizer": stage.optimizer.spec.name,
            "engine": stage.engine.name if stage.engine else None,
            "reward": stage.cfg.reward.name if stage.reward else None,
            "judge": stage.judge.name if stage.judge else None,
            **stage.preview,
            "warnings": stage.warnings,
        }


def make_plan(cfg: RunConfig, registry: Registry) -> Plan:
    """The chain of stages for a config, with keys, parents and what can be reused.

    Raises ConfigError for a stage that cannot be had or a combination that cannot work; DataError for data that does
    not serve a stage.
    """
    ledger = Ledger(Path(cfg.runs_dir))
    fingerprint = source_fingerprint(cfg.model)
    stages: list[StagePlan] = []
    for spec, stage_cfg in _chain(cfg, registry):
        part = copy.copy(cfg)
        part.stage = stage_cfg
        stages.append(_plan_stage(part, spec, registry, stages, fingerprint))
    if cfg.reuse:
        for stage in stages:
            stage.take(ledger.lookup(stage.key))
    plan = Plan(stages)
    for answer in sorted(registry.hook.modify_plan.get_hookimpls(), key=lambda impl: impl.plugin_name):
        known = {"cfg": cfg, "plan": plan}
        with blamed(registry.owner_named(answer.plugin_name), "modify_plan"):
            answer.function(*[known[name] for name in answer.argnames])
    return plan


def _chain(cfg: RunConfig, registry: Registry) -> list[tuple[StageSpec, Any]]:
    """Specs and stage configs, in the order they run."""
    target = registry.stages[(cfg.stage.name, cfg.stage.algorithm)].spec
    named = cfg.pipeline.stages
    if named is not None:
        if not named or named[-1] != target.name:
            raise ConfigError(
                f"the pipeline {named} does not end with the stage '{target.name}'",
                "pipeline.stages",
                f"end it with '{target.name}', or choose stage={named[-1] if named else '…'}",
            )
        before = named[:-1]
    else:
        before = [stage for role, stage in target.after.items() if _lacks(cfg, role, registry)]
    chain = []
    for name in before:
        config = cfg.upstream.get(name) if isinstance(cfg.upstream, dict) else getattr(cfg.upstream, name, None)
        if config is None:
            raise ConfigError(
                f"there is no stage '{name}'", "pipeline.stages", f"one of: {', '.join(registry.stage_names())}"
            )
        spec = registry.stages[(name, config.algorithm)].spec
        chain.append((spec, config))
    return [*chain, (target, cfg.stage)]


def _lacks(cfg: RunConfig, role: str, registry: Registry) -> bool:
    """Whether the config names no model for the role, so that a stage must make it."""
    if role != "reward_model":
        return True
    return _uses(cfg, registry, "needs_model") and not getattr(cfg.reward, "source", None)


def _uses(cfg: RunConfig, registry: Registry, need: str) -> bool:
    """Whether the configured reward, or a member of it, has the need `needs_model` or `needs_answer`."""
    specs = {name: entry.spec for name, entry in registry.reward_models.items()}
    return any(getattr(spec, need) for spec in involved(specs[cfg.reward.name], cfg.reward, specs))


def engine_for(cfg: RunConfig, stage: StageSpec, registry: Registry) -> EngineSpec:
    """The engine that was named; for `auto` the importable one of the highest priority that the combination allows."""
    if cfg.rollout.name in registry.engines:
        return registry.engines[cfg.rollout.name].spec
    ranked = sorted((entry.spec for entry in registry.engines.values()), key=lambda spec: -spec.priority)
    for spec in ranked:
        trial = copy.copy(cfg)
        trial.rollout = spec.config(name=spec.name)
        refused = any(finding.level == "error" for finding in check_combinations(trial, stage))
        if not refused and all(importable(name) for name in spec.requires):
            return spec
    raise PluginError("no rollout engine can be imported", "rollout", "pip install 'preftune[cpu]' or 'preftune[gpu]'")


def _optimizer(cfg: RunConfig, registry: Registry) -> Registered[OptimizerSpec]:
    """The optimizer that was named. Raises ConfigError where no plugin brings it, PluginError for what it lacks."""
    entry = registry.optimizers.get(cfg.optimizer.name)
    if entry is None:
        known = ", ".join(sorted(registry.optimizers))
        mend = f"optimizer=NAME with one of: {known}" if known else "allow a plugin that brings one, e.g. optimizers"
        raise ConfigError("no optimizer is chosen", "optimizer", mend)
    registry.check_requires(entry.spec)
    return entry


def _plan_stage(
    cfg: RunConfig, spec: StageSpec, registry: Registry, before: list[StagePlan], fingerprint: str
) -> StagePlan:
    registry.check_requires(spec)
    providers = Providers()
    dataset = dataset_for(cfg, spec.data, registry, providers)
    engine = engine_for(cfg, spec, registry) if spec.samples else None
    reward = registry.reward_models[cfg.reward.name].spec if spec.rollouts else None
    if spec.builds:
        cfg.judge = _judge(cfg, dataset, registry)
    parents: dict[str, StagePlan] = {}
    for kind in ("policy", "reward_model"):
        made = [stage for stage in before if stage.spec.makes == kind]
        if made and (kind == "policy" or kind in spec.roles):
            parents[kind] = made[-1]
    if reward and _uses(cfg, registry, "needs_answer") and not any(record.answer for record in dataset.train):
        raise ConfigError(
            f"reward={reward.name} compares with an answer, but no training record has one",
            "reward",
            "name the column with data.columns.answer=COLUMN, or choose another reward",
        )
    if reward and _lacks(cfg, "reward_model", registry) and "reward_model" not in parents:
        raise ConfigError(
            f"reward={reward.name} scores with a learned reward model, but the pipeline makes none",
            "pipeline.stages",
            "put 'reward' before this stage, set reward.source=FOLDER, or choose a rule as reward",
        )
    _check_scorers(cfg, spec, parents, registry)
    check_retention(cfg.retention)
    if isinstance(cfg.peft, ShapedPeftConfig):
        registry.check_requires(registry.peft_methods[cfg.peft.shaped_by].spec)
    for metric in cfg.eval.metrics:
        registry.check_requires(registry.metrics[metric.name].spec)
    owner = registry.owner_of(spec)
    plan = StagePlan(
        spec, {"distribution": owner.distribution, "version": owner.version, "plugin": owner.plugin}, cfg, dataset,
        _optimizer(cfg, registry), engine, reward, registry.reward_models[cfg.judge.name].spec if spec.builds else None,
        fingerprint=fingerprint, parents=parents, warnings=list(dataset.warnings), seconds=dict(providers.seconds),
    )  # fmt: skip
    findings = check_combinations(cfg, spec)
    if "policy" in parents and (broken := check_chain(cfg, parents["policy"].stage)) is not None:
        findings.append(broken)
    for finding in findings:
        if finding.level == "error":
            raise ConfigError(finding.message, f"stage {spec.name}", finding.mend)
        plan.warnings.append(f"{finding.message}; {finding.mend}" if finding.mend else finding.message)
    plan.key = artifact_key(plan)
    return plan


def _judge(cfg: RunConfig, dataset: Dataset, registry: Registry) -> RewardConfig:
    """The judge that was named; for `auto` the reward model for the kind of gold answers that the records carry.

    Raises ConfigError for a judge that lacks a setting, or that needs a reward model.
    """
    config = cfg.judge
    specs = {name: entry.spec for name, entry in registry.reward_models.items()}
    if config.name == "auto":
        kind = answer_kind([record.answer for record in dataset.train]) or "text"
        fitting = next((spec for spec in specs.values() if spec.answers == kind), None)
        if fitting is None:
            raise ConfigError(f"no reward model compares {kind} answers", "judge=auto", "name one: judge=NAME")
        shared = {item.name: getattr(config, item.name) for item in dataclasses.fields(RewardConfig)}
        config = fitting.config(**{**shared, "name": fitting.name})
    spec = find_spec(config.name, specs, "judge")
    try:
        asked = involved(spec, config, specs)
    except ConfigError as error:
        raise ConfigError(error.what.replace("'reward.", "'judge."), "judge", error.mend) from error
    if any(item.needs_model for item in asked):
        raise ConfigError(
            f"judge={config.name} scores with the run's reward model, which a judge has not",
            "judge", "choose a rule, or a judge with a model of its own",
        )  # fmt: skip
    registry.check_requires(spec)
    return config


def answer_kind(answers: Sequence[str | None]) -> str:
    """Kind of answers, as RewardSpec.answers names it: "number", "text", or empty where not all are there."""
    if not answers or not all(answers):
        return ""
    return "number" if all(_is_number(answer) for answer in answers) else "text"


def _is_number(text: str | None) -> bool:
    try:
        float((text or "").replace(",", ""))
    except ValueError:
        return False
    return True


def _check_scorers(cfg: RunConfig, spec: StageSpec, parents: dict[str, StagePlan], registry: Registry) -> None:
    """Raise ConfigError for a reward model folder or a true scorer that could not be had when it is needed."""
    source = getattr(cfg.reward, "source", None)
    if spec.rollouts and source and not list(artifact_folder(Path(source).expanduser()).glob("*.safetensors")):
        raise ConfigError(
            f"reward.source: '{source}' holds no reward model",
            "reward.source",
            "name the folder of a reward model in transformers' format, or of the run that made it",
        )
    for name, params in cfg.reward.uses():
        if params.get("source"):
            raise ConfigError(
                f"the member '{name}' names a source of its own", "reward.members",
                "leave it out: members score with the run's own reward model",
            )  # fmt: skip
    name = cfg.eval.scorer
    if name == "auto" or (spec.rollouts and name == cfg.reward.name):
        return
    specs = {key: entry.spec for key, entry in registry.reward_models.items()}
    scorer = find_spec(name, specs)
    if scorer.needs_model and "reward_model" not in parents:
        raise ConfigError(
            f"eval.scorer={name} needs a reward model, which this stage has not",
            "eval.scorer",
            "choose a rule, or auto",
        )
    try:
        scorer.config(name=name).check()
    except ConfigError as error:
        raise ConfigError(
            f"eval.scorer={name} cannot work without settings: {error.what}", "eval.scorer",
            f"choose it as reward={name} with its settings too, or take another scorer",
        ) from error  # fmt: skip


def dataset_for(cfg: RunConfig, schema: str, registry: Registry, providers: Providers | None = None) -> Dataset:
    """The records that a config names, as `schema`, filtered, augmented and mixed as it says.

    providers: counts what data sources and transforms take.
    """
    providers = providers or Providers()
    transforms = bind_transforms(cfg.data.transforms, registry, providers)
    places = _places(cfg, registry, providers)
    return build_dataset(cfg.data, places, schema, cfg.runtime.seed, transforms, registry.formats())


def _places(cfg: RunConfig, registry: Registry, providers: Providers) -> Path | dict[str, Path]:
    """The file or folder that the data config names; for a mixture that of each source."""
    if cfg.data.mixture:
        return {
            name: _place(source.path, source.source, f"data.mixture.{name}", cfg, registry, providers)
            for name, source in cfg.data.mixture.items()
        }
    return _place(cfg.data.path, cfg.data.source, "data", cfg, registry, providers)


def _place(
    path: str | None, source: str | None, key: str, cfg: RunConfig, registry: Registry, providers: Providers
) -> Path:
    """A file or folder; a generator's rows are written once into the cache."""
    if path:
        return Path(path).expanduser()
    if not source:
        raise ConfigError("no data is named", key, f"set {key}.path=FILE or data=demo")
    if source not in registry.data_sources:
        known = ", ".join(sorted(registry.data_sources))
        raise ConfigError(f"there is no data source '{source}'", f"{key}.source", f"one of: {known}")
    return _generated(registry.data_sources[source].spec, cfg.runtime.seed, registry, providers)


def _generated(source: DataSourceSpec, seed: int, registry: Registry, providers: Providers) -> Path:
    from core.files import atomic_folder

    folder = cache_dir() / "data" / f"{source.name}-{source.version}-{seed}"
    if not folder.is_dir():
        write = registry.resolve(source)
        with atomic_folder(folder) as part, providers.at(registry.owner_of(source), f"'{source.impl}'"):
            write(part, seed)
        if not any(folder.iterdir()):
            raise PluginError(f"the data source '{source.name}' wrote no file", source.impl)
    return folder
