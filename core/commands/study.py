"""`study`: run every arm of an experiment with every seed, compare them, and say what is seen of the claims.

Torch-free; each run has a process of its own."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from core import __version__
from core.commands.run import run as run_command_line
from core.config.overrides import words
from core.config.presets import all_presets
from core.config.typed import print_warnings, typed_config
from core.console import Console
from core.errors import ConfigError, PreftuneError, Reported
from core.files import write_json
from core.planning.ledger import Ledger
from core.planning.make import make_plan
from core.platform.providers import tell
from core.platform.registry import Registry
from core.report.comparison import ArmRun, compare
from core.report.format import seconds
from core.report.study_page import claim_rows, result_rows, write_pages
from core.results import StageResult
from core.settings.schema import RunConfig
from core.training.stage_process import run_apart

STUDY_VERSION = 1


def command(arguments: list[str]) -> int:
    """Run the study that `experiment=` names; without it, list the studies. Exit code 1 where a run failed."""
    if flags := [argument for argument in arguments if argument.startswith("-")]:
        raise ConfigError(f"'study' does not take '{flags[0]}'", mend="study experiment=NAME [key=value …]")
    names = words(arguments, "experiment")
    if not names:
        sys.stdout.write(_listing())
        return 0 if not arguments else 2
    for argument in arguments:
        if argument.startswith(("runtime.seed=", "stage=", "algorithm=")):
            key = argument.partition("=")[0]
            raise ConfigError(f"'{key}' is set by the study for each of its runs", argument,
                              "set study.seeds=[…], or run one arm by its own overrides without 'study'")  # fmt: skip
    registry = Registry.load()
    cfg, _, _ = typed_config(arguments, registry)
    if not cfg.study.arms:
        raise ConfigError(f"experiment '{names[0]}' names no arms to compare", f"experiment={names[0]}",
                          f"one of: {', '.join(_studies(registry)) or '(none is installed)'}")  # fmt: skip
    print_warnings(registry)
    _check_files(cfg)
    return _Study(names[0], cfg, arguments).run()


def _studies(registry: Registry) -> dict[str, str]:
    """The experiments that compare arms, by name, with their titles."""
    from omegaconf import OmegaConf

    files = {one.name: one.file for one in all_presets(registry) if one.group == "experiment"}
    found = {name: OmegaConf.load(file) for name, file in sorted(files.items())}
    return {name: preset.study.get("title", "") for name, preset in found.items() if "study" in preset}


def _listing() -> str:
    lines = [f"  {name:<20} {title}\n" for name, title in _studies(Registry.load()).items()]
    return "studies, to be run with: study experiment=NAME\n" + "".join(lines)


def _check_files(cfg: RunConfig) -> None:
    """Raise ConfigError for files that the study needs and the user has not."""
    missing = {name: where for name, where in cfg.study.files.items() if not (Path(cfg.data_dir) / name).exists()}
    if missing:
        listed = "; ".join(f"{name} from {where}" for name, where in missing.items())
        raise ConfigError(
            f"the study needs files that are not in data_dir={cfg.data_dir}: {', '.join(missing)}", "data_dir",
            f"set data_dir=FOLDER to where they are, or fetch {listed}",
        )  # fmt: skip


class _Study:
    """The runs of a study, planned at once, carried out one by one."""

    def __init__(self, name: str, cfg: RunConfig, arguments: list[str]) -> None:
        self.name, self.cfg, self.study = name, cfg, cfg.study
        self.console = Console()
        self.ledger = Ledger(Path(cfg.runs_dir))
        self.written: dict[str, Any] = {}
        """study.json as it was written last."""
        self.given = [word for word in arguments if not word.startswith(("experiment=", "study.", "++study."))]
        # Seed by seed, so that a study which was cut short has whole comparisons.
        self.runs = [ArmRun(arm, seed) for seed in self.study.seeds for arm in self.study.arms]
        for arm_run in self.runs:
            self._plan(arm_run)
        digest = hashlib.sha256("".join(arm_run.key for arm_run in self.runs).encode()).hexdigest()[:8]
        self.folder = Path(cfg.runs_dir) / "studies" / f"{name}-{digest}"

    def _words(self, arm_run: ArmRun) -> list[str]:
        """The command line of one run."""
        return [f"experiment={self.name}", *self.study.arms[arm_run.arm], *self.given, f"runtime.seed={arm_run.seed}"]

    def _plan(self, arm_run: ArmRun) -> None:
        """The run's key, and its numbers where it is done already. Raises what is wrong with its config or data."""
        try:
            cfg, registry, _ = typed_config(self._words(arm_run))
            arm_run.key = make_plan(cfg, registry).target.key
        except PreftuneError as error:
            error.where = f"arm {arm_run.arm}, seed {arm_run.seed}" + (f": {error.where}" if error.where else "")
            raise
        if self.cfg.reuse:
            self._take(arm_run)

    def _take(self, arm_run: ArmRun) -> bool:
        """Read a run that is done; whether it is."""
        found = self.ledger.lookup(arm_run.key)
        if found.state != "reuse" or found.folder is None:
            return False
        arm_run.read(found.folder, list(self.study.metrics))
        result = StageResult.read(found.folder)
        arm_run.seconds = result.wall_seconds if result is not None else None
        return True

    def run(self) -> int:
        """Run what is not done, write the pages after each run. Returns the exit code."""
        say = self.console.line
        done = sum(arm_run.state == "done" for arm_run in self.runs)
        say(f"study {self.name}: {self.study.title}")
        for arm, overrides in self.study.arms.items():
            say(f"  {arm:<14} {' '.join(overrides)}")
        say(f"  {len(self.runs)} runs: {len(self.study.arms)} arms × seeds {self.study.seeds}; {done} are done already")
        if self.cfg.dry_run:
            return 0
        for number, arm_run in enumerate(self.runs, 1):
            if arm_run.state == "done":
                continue
            say(f"run {number} of {len(self.runs)}: arm {arm_run.arm}, seed {arm_run.seed}{self._left(number - 1)}")
            self._run_arm(arm_run)
            self._write()
        self._write()
        self._summary()
        return int(any(arm_run.state == "failed" for arm_run in self.runs))

    def _run_arm(self, arm_run: ArmRun) -> None:
        began = time.monotonic()
        try:
            run_apart(_run, self._words(arm_run))
        except Reported:
            arm_run.state = "failed"
        except PreftuneError as error:
            arm_run.state = "failed"
            tell(error)
        if arm_run.state == "failed" or not self._take(arm_run):
            arm_run.state = "failed"
            self.console.warn(f"arm {arm_run.arm}, seed {arm_run.seed} failed; the study goes on without it")
        arm_run.seconds = time.monotonic() - began

    def _left(self, place: int) -> str:
        """About how long the runs from `place` on take, by those of the same arm, else by all."""
        known = [arm_run for arm_run in self.runs if arm_run.seconds is not None]
        waiting = [arm_run for arm_run in self.runs[place:] if arm_run.state == "waiting"]
        if not known:
            return ""
        total = 0.0
        for arm_run in waiting:
            like = [one.seconds for one in known if one.arm == arm_run.arm] or [one.seconds for one in known]
            total += statistics.fmean(value for value in like if value is not None)
        return f"; about {seconds(total)} left for {len(waiting)} runs"

    def _write(self) -> None:
        """study.json, study.md and study.html, as far as the runs have come."""
        study = {
            "version": STUDY_VERSION,
            "name": self.name,
            "title": self.study.title,
            "paper": self.study.paper,
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, preftune {__version__}",
            "seconds": sum(arm_run.seconds or 0.0 for arm_run in self.runs),
            "seeds": list(self.study.seeds),
            "arms": {arm: list(overrides) for arm, overrides in self.study.arms.items()},
            **compare(self.study, self.runs),
            "runs": [vars(arm_run) for arm_run in self.runs],
        }
        self.written = study
        write_json(self.folder / "study.json", study)
        write_pages(self.folder, study)

    def _summary(self) -> None:
        from rich.table import Table

        for head, rows in (result_rows(self.written), claim_rows(self.written)):
            table = Table(show_edge=False, pad_edge=False)
            for column in head:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*row)
            self.console.rich.print(table)
        for name in ("study.html", "study.md", "study.json"):
            self.console.line(f"{name:<11} {self.folder / name}")


def _run(arguments: list[str]) -> None:
    """One run, in a process of its own."""
    sys.exit(run_command_line(arguments))
