"""From config to a plan: the chain of stages, the parts that each takes, and what cannot work together. Torch-free."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from core.config.combinations import check_chain, check_combinations
from core.data.dataset import Dataset
from core.data.records import answer_kind
from core.data.retention_sets import check_retention
from core.errors import ConfigError, PluginError
from core.planning.keys import artifact_key
from core.planning.ledger import Ledger
from core.planning.named_data import dataset_for
from core.planning.plan import Plan, StagePlan
from core.planning.plugin_code import plugin_parts
from core.planning.sources import artifact_folder, source_fingerprint
from core.platform.installing import importable
from core.platform.owners import Registered
from core.platform.providers import Providers, blamed
from core.platform.registry import Registry
from core.platform.spec_checks import Spec
from core.platform.specs import EngineSpec, OptimizerSpec, RewardSpec, StageSpec
from core.scoring.guarded import PART, find_spec, involved
from core.settings.convert import placed
from core.settings.schema import RewardConfig, RunConfig, ShapedPeftConfig
from core.suggest import did_you_mean


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
    edits = registry.hook.modify_plan.get_hookimpls()
    for answer in sorted(edits, key=lambda impl: impl.plugin_name):
        known = {"cfg": cfg, "plan": plan}
        with blamed(registry.owner_named(answer.plugin_name), "modify_plan"):
            answer.function(*[known[name] for name in answer.argnames])
    for stage in plan.stages if edits else []:  # in order: a key holds those of the stages before
        key, stage.key = stage.key, artifact_key(stage)
        if cfg.reuse and stage.key != key:
            stage.take(ledger.lookup(stage.key))
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
            known = registry.stage_names()
            what = f"there is no stage '{name}'{did_you_mean(name, known)}"
            mend = "; ".join(filter(None, (f"choose one of: {', '.join(known)}", registry.left_out(name))))
            raise ConfigError(what, "pipeline.stages", mend)
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
    optimizer = _optimizer(cfg, registry)
    specs: list[Spec] = [spec, optimizer.spec, *_chosen(cfg, engine, reward, spec.builds, registry)]
    plan = StagePlan(
        spec, {"distribution": owner.distribution, "version": owner.version, "plugin": owner.plugin}, cfg, dataset,
        optimizer, engine, reward, registry.reward_models[cfg.judge.name].spec if spec.builds else None,
        fingerprint=fingerprint, plugin_parts=plugin_parts(cfg, specs, registry), parents=parents,
        warnings=list(dataset.warnings), seconds=dict(providers.seconds),
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


def _chosen(
    cfg: RunConfig, engine: EngineSpec | None, reward: RewardSpec | None, judged: bool, registry: Registry
) -> list[Spec]:
    """The other parts that a stage takes: engine, scorers with their members, metrics, transforms, peft method."""
    scorers = {name: entry.spec for name, entry in registry.reward_models.items()}
    found: list[Spec] = [engine] if engine else []
    if reward:
        found += involved(reward, cfg.reward, scorers)
    if judged:
        found += involved(scorers[cfg.judge.name], cfg.judge, scorers)
    if cfg.eval.scorer in scorers:
        found.append(scorers[cfg.eval.scorer])
    found += [registry.metrics[metric.name].spec for metric in cfg.eval.metrics]
    found += [registry.transforms[step.name].spec for step in cfg.data.transforms if step.name in registry.transforms]
    if isinstance(cfg.peft, ShapedPeftConfig):
        found.append(registry.peft_methods[cfg.peft.shaped_by].spec)
    return found


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
        at = placed(error, spec.config, "judge", PART)
        raise (at if at.where else at.within("judge")) from error
    if any(item.needs_model for item in asked):
        raise ConfigError(
            f"judge={config.name} scores with the run's reward model, which a judge has not",
            "judge", "choose a rule, or a judge with a model of its own",
        )  # fmt: skip
    registry.check_requires(spec)
    return config


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
    scorer = find_spec(name, specs, "eval.scorer")
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
