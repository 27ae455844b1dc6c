"""A run that trains nothing, for commands that ask a model about records. Torch-free at import."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.chain import check_device, load_torch
from core.config.typed import print_warnings, typed_config, with_stage
from core.console import Console
from core.errors import ConfigError
from core.planning.make import engine_for, make_plan
from core.platform.registry import Registry
from core.quiet import set_environment

if TYPE_CHECKING:
    from core.training.run import StageRun


@contextmanager
def sampling_run(command: str, settings: list[str]) -> Iterator[StageRun]:
    """A run whose records, tokenizer, policy and rollout engine are those that `settings` (words `key=value`) name.

    command: stands for the stage in what is told. The records are read as the stage of the settings reads them; where
    none is named, as demonstrations. The policy is frozen. The run's folder goes away at the end; `build_rows` keeps
    what it made under `runs_dir`.
    Raises: ConfigError for settings that cannot work, and for a stage that would start from another stage's artifact;
        DataError for records that do not serve.
    """
    set_environment()
    registry = Registry.load()
    print_warnings(registry)
    quiet = [] if any(word.startswith("tracker=") for word in settings) else ["tracker=none"]
    cfg, registry, config_json = typed_config([*with_stage(settings, registry), *quiet], registry)
    check_device(cfg)
    whole = make_plan(cfg, registry)
    plan = whole.target
    if before := plan.parents.get("policy"):
        raise ConfigError(
            f"{plan.title} would start from what {before.title} makes, not from model.source", "pipeline.stages",
            f"add pipeline.stages=[{plan.stage}], or name another stage",
        )  # fmt: skip
    plan.engine = engine_for(cfg, plan.spec, registry)
    load_torch(cfg)
    from core.models.by_role import frozen_policy
    from core.models.roles import Models
    from core.training.opening import open_stage

    with tempfile.TemporaryDirectory(prefix="preftune-") as folder:
        plan.run_dir = Path(folder)
        opened = open_stage(whole, plan, registry, Console(), config_json, name=command)
        run = opened.run
        try:
            for note in run.codec.notes:
                run.log.warn(note)
            run.parts.hold(Models(run.start, policy=frozen_policy(run.start)), 0)
            yield run
        finally:
            opened.close()
