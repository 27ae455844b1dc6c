"""One command line becomes one job or many: compose through Hydra, accept, run. Torch-free until a job starts."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from core.config import check, compose
from core.config.combinations import check_combinations
from core.config.explain import explain
from core.config.overrides import rewrite, split, user_folders
from core.config.presets import missing_folders
from core.errors import ConfigError, PreftuneError, Reported
from core.platform.providers import tell
from core.platform.registry import Registry
from core.platform.switches import check_switches, switched
from core.settings.schema import RunConfig

_exit_codes: list[int] = []
"""Exit codes of the jobs that ran in this process."""
_launching: set[int] = set()
"""Process ids in which `launch` is at work; a launcher's workers are not among them."""


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


def job(cfg: DictConfig) -> int:
    """One job of a run or a multirun, with a plugin manager of its own."""
    try:
        settings = HydraConfig.get() if HydraConfig.initialized() else None
        if settings is not None and settings.mode == RunMode.MULTIRUN:
            sys.stderr.write(f"== job {settings.job.num}: {settings.job.override_dirname}\n")
        registry = Registry.load()
        typed = accept(cfg, registry)
        from core.commands.execute import execute

        code = int(execute(typed, registry, check.plain(cfg)) or 0)
    except PreftuneError as error:
        tell(error)
        code = error.exit_code
    except Reported as reported:
        code = reported.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    if code and os.getpid() not in _launching:
        raise Reported(code)  # a return value of a worker is lost on the way
    _exit_codes.append(code)
    return code


def _hydra(arguments: list[str]) -> None:
    """Hydra's own entry point on `arguments`, raising what it raises instead of printing it."""
    saved_arguments, saved_setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [saved_arguments[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name=compose.ROOT)(job)()
    finally:
        sys.argv = saved_arguments
        if saved_setting is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_setting


def _run_alone(overrides: list[str]) -> bool:
    """Run one job without Hydra's runner, which composes twice; False when the configuration asks for that runner."""
    if any(override.startswith("hydra") for override in overrides):
        return False
    cfg = compose.compose(overrides)
    if cfg.hydra.mode == RunMode.MULTIRUN or cfg.hydra.callbacks:
        return False
    job(compose.without_hydra(cfg))
    return True


def launch(arguments: list[str]) -> int:
    """Run what the command line says; the exit code of the worst job.

    Raises PreftuneError for what is found before a job starts.
    """
    registry = Registry.load()
    print_warnings(registry)
    if not registry.stages:
        raise ConfigError("no stage is installed", mend="reinstall preftune; 'plugins' tells what was found")
    flags, overrides = split(arguments)
    folders = user_folders(flags)
    rewritten = rewrite(overrides, registry)
    compose.install(registry, folders)
    _exit_codes.clear()
    _launching.add(os.getpid())
    try:
        if flags or not _run_alone(rewritten):
            _hydra([*flags, *rewritten])
    except Reported as reported:
        return max([reported.exit_code, *_exit_codes])
    except Exception as error:
        explained = explain(error, registry, folders)
        if explained is None:
            raise
        raise explained from error
    finally:
        _launching.discard(os.getpid())
    return max(_exit_codes, default=0)


def typed_config(arguments: list[str]) -> tuple[RunConfig, Registry, dict[str, Any]]:
    """(typed configuration, its registry, resolved configuration as JSON values) of one run, in this process.

    For tests and tools; flags are not understood. Raises PreftuneError.
    """
    with switched(arguments):
        registry = Registry.load()
        overrides = rewrite(arguments, registry)
        compose.install(registry)
        try:
            cfg = compose.without_hydra(compose.compose(overrides))
        except Exception as error:
            explained = explain(error, registry)
            if explained is None:
                raise
            raise explained from error
        return accept(cfg, registry), registry, check.plain(cfg)


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
