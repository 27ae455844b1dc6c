"""One command line becomes one run or many: composed through Hydra, accepted, carried out. Torch-free until a stage
starts."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from core.config import check, compose
from core.config.explain import explain
from core.config.overrides import rewrite, split, user_folders
from core.config.typed import accept, print_warnings
from core.errors import ConfigError, PreftuneError, Reported
from core.platform.providers import tell
from core.platform.registry import Registry
from core.startup import starting

_exit_codes: list[int] = []
"""Exit codes of the jobs that ran in this process."""
_launching: set[int] = set()
"""Process ids in which `run` is at work; a launcher's workers are not among them."""


def run(arguments: list[str]) -> int:
    """Carry out what the command line says; the exit code, of several jobs the worst one's.

    Raises PreftuneError for what is wrong with the command line, and with a single run.
    """
    with starting():
        registry = Registry.load()
        print_warnings(registry)
        if not registry.stages:
            mend = registry.left_out("") or "reinstall preftune; 'plugins' tells what was found"
            raise ConfigError("no stage is installed", mend=mend)
        flags, overrides = split(arguments)
        folders = user_folders(flags)
        rewritten = rewrite(overrides, registry)
        compose.install(registry, folders)
    _exit_codes.clear()
    _launching.add(os.getpid())
    try:
        alone = None if flags else _composed(rewritten)
        if alone is None:
            _by_hydra([*flags, *rewritten])
            return max(_exit_codes, default=0)
    except Reported as reported:
        return max([reported.exit_code, *_exit_codes])
    except Exception as error:
        explained = explain(error, registry, folders)
        if explained is None:
            raise
        raise explained from error
    finally:
        _launching.discard(os.getpid())
    from core.commands.chain import run_chain

    return run_chain(accept(alone, registry), registry, check.resolved(alone))


def _composed(overrides: list[str]) -> DictConfig | None:
    """The configuration of a single run; None where it asks for Hydra's own runner, which would compose it twice."""
    if any(override.startswith("hydra") for override in overrides):
        return None
    with starting():
        cfg = compose.compose(overrides)
    if cfg.hydra.mode == RunMode.MULTIRUN or cfg.hydra.callbacks:
        return None
    return compose.without_hydra(cfg)


def _by_hydra(arguments: list[str]) -> None:
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


def job(cfg: DictConfig) -> int:
    """One job of Hydra's runner, maybe in a worker process; its failure does not end the other jobs."""
    try:
        settings = HydraConfig.get() if HydraConfig.initialized() else None
        if settings is not None and settings.mode == RunMode.MULTIRUN:
            sys.stderr.write(f"== job {settings.job.num}: {settings.job.override_dirname}\n")
        registry = Registry.load()
        typed = accept(cfg, registry)
        from core.commands.chain import run_chain

        code = run_chain(typed, registry, check.resolved(cfg))
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
