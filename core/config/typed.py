"""A command line as the typed configuration of one run. Torch-free."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from core.config import check, compose
from core.config.combinations import check_combinations
from core.config.explain import explain
from core.config.overrides import rewrite
from core.config.presets import missing_folders
from core.errors import ConfigError
from core.platform.registry import Registry
from core.platform.switches import check_switches, switched
from core.settings.schema import RunConfig


def print_warnings(registry: Registry) -> None:
    """What the user must know about the plugins, on stderr."""
    for line in [*registry.warnings, *missing_folders(registry)]:
        sys.stderr.write(f"warning: {line}\n")


def accept(cfg: DictConfig, registry: Registry) -> RunConfig:
    """The typed configuration; ConfigError where a part, or a combination of parts, cannot be accepted."""
    typed = check.accept(cfg, registry)
    check_switches(typed.plugins)
    spec = registry.stages[(typed.stage.name, typed.stage.algorithm)].spec
    refused = [finding for finding in check_combinations(typed, spec) if finding.level == "error"]
    if refused:
        mends = dict.fromkeys(finding.mend for finding in refused if finding.mend)
        raise ConfigError("; ".join(finding.message for finding in refused), mend="; ".join(mends))
    return typed


def typed_config(arguments: list[str], registry: Registry | None = None) -> tuple[RunConfig, Registry, dict[str, Any]]:
    """(typed configuration, its registry, resolved configuration as JSON values) of one run, in this process.

    registry: the plugins, where they were loaded already. For commands, tests and tools; flags are not understood.
    Raises PreftuneError.
    """
    with switched(arguments):
        known = registry if registry is not None else Registry.load()
        overrides = rewrite(arguments, known)
        compose.install(known)
        try:
            cfg = compose.without_hydra(compose.compose(overrides))
        except Exception as error:
            explained = explain(error, known)
            if explained is None:
                raise
            raise explained from error
        return accept(cfg, known), known, check.resolved(cfg)


def with_stage(settings: list[str], registry: Registry) -> list[str]:
    """The words, led by the first stage that learns from demonstrations where they name none.

    Raises ConfigError where no such stage is installed.
    """
    if any(word.startswith("stage=") for word in settings):
        return settings
    for (name, _), entry in sorted(registry.stages.items()):
        if entry.spec.data == "sft":
            return [f"stage={name}", *settings]
    raise ConfigError("no stage was named", mend="add stage=NAME")
