"""Logs a stage to Weights & Biases: metrics, samples, result and lineage. Offline is a normal state."""

from __future__ import annotations

import hashlib
import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from core.api import ConfigError, hookimpl
from plugins.tracker_wandb import WandbConfig, WandbMode

if TYPE_CHECKING:
    import wandb

    from core.api import Run, StageResult

COLUMNS = ("when", "step", "index", "prompt", "completion", "answer", "score", "reward")
MAX_ROWS = 2000
"""Rows of the whole run's sample table; the first ones are kept."""
CONNECT_S = 30
"""Seconds to wait for the server before an `auto` run goes offline."""


def has_api_key(environment: Mapping[str, str]) -> bool:
    """Whether WANDB_API_KEY, or the netrc file (NETRC, else ~/.netrc or ~/_netrc), holds a key for the W&B server
    (WANDB_BASE_URL, else api.wandb.ai). The key itself is not kept."""
    if environment.get("WANDB_API_KEY", "").strip():
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]:
        try:
            entry = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def choose_mode(mode: WandbMode, environment: Mapping[str, str]) -> WandbMode:
    """The mode to run in. Raises ConfigError for `online` without any credentials, where wandb would ask for a key."""
    if mode is WandbMode.auto:
        asked = {"dryrun": "offline", "run": "online"}.get(name := environment.get("WANDB_MODE", ""), name)
        if asked in (WandbMode.offline, WandbMode.disabled):
            return WandbMode(asked)
        return WandbMode.online if has_api_key(environment) else WandbMode.offline
    if mode is WandbMode.online and not has_api_key(environment) and not environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        raise ConfigError(
            "tracker.mode=online, but there is no W&B API key",
            where="tracker.mode",
            mend="run `wandb login`, set WANDB_API_KEY, or take tracker.mode=offline and `wandb sync` the run later",
        )
    return mode


class WandbTracker:
    """Observer that keeps one W&B run for one stage.

    The W&B run's id follows from the artifact key and the run folder, so a resumed stage goes on in the same W&B run;
    the x axis of every metric is the logged `step`. W&B's own metadata is left off, because it holds the command line
    as typed and with it what the resolved config was cleared of.
    """

    def __init__(self, config: WandbConfig) -> None:
        self.config = config
        self.mode = choose_mode(WandbMode(config.mode), os.environ)
        self.wandb_run: wandb.Run | None = None
        self.rows: list[list[Any]] = []

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        """Open the W&B run, in `<run folder>/wandb`."""
        self._close(0)
        self.rows = []
        if self.mode is WandbMode.disabled:
            return
        self.wandb_run = self._open(run)
        self.wandb_run.define_metric("step", hidden=True)
        self.wandb_run.define_metric("*", step_metric="step")
        if not self.wandb_run.offline:
            self._use_parents(run)

    @hookimpl
    def on_step_end(self, step: int, metrics: dict[str, float]) -> None:
        """Log the step's metrics under their own names."""
        self._log(step, metrics)

    @hookimpl
    def on_eval_end(self, step: int, metrics: dict[str, float]) -> None:
        """Log held-out metrics under `eval/`."""
        self._log(step, {name if "/" in name else f"eval/{name}": value for name, value in metrics.items()})

    @hookimpl
    def on_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Log the rows as the table `samples/latest`; the run's end logs them all as `samples/all`."""
        import wandb

        if self.wandb_run is None or not rows:
            return
        fresh = [_row(step, place, row) for place, row in enumerate(rows)]
        self.rows.extend(fresh[: max(0, MAX_ROWS - len(self.rows))])
        self._log(step, {"samples/latest": wandb.Table(columns=list(COLUMNS), data=fresh)})

    @hookimpl
    def on_run_end(self, run: Run, result: StageResult) -> None:
        """Write the summary, log the artifact and close the W&B run."""
        if self.wandb_run is None:
            return
        try:
            self._log_all_samples(result.steps)
            told = _scalars(result.to_json())
            self.wandb_run.summary.update({f"result/{name}": value for name, value in told.items()})
            self._log_artifact(run, result)
        finally:
            self._close(0)

    @hookimpl
    def on_run_error(self, phase: str, step: int, error: BaseException) -> None:
        """Close the W&B run as failed, with the phase and the kind of error."""
        if self.wandb_run is None:
            return
        try:
            self._log_all_samples(step)
            summary = {"error/phase": phase, "error/step": step, "error/type": type(error).__name__}
            self.wandb_run.summary.update(summary)
        finally:
            self._close(1)

    def _open(self, run: Run) -> wandb.Run:
        import wandb

        # W&B would advertise its tracing product on the console wherever a package like openai is loaded, as vLLM does.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        plan = run.plan_json
        about = {"stage": run.name, "algorithm": run.plan.algorithm, "key": run.plan.key}
        lineage = {"parents": run.parents, "owner": plan.get("owner"), "run_dir": str(run.folder)}
        name = "-".join(part for part in (run.name, run.plan.algorithm, run.folder.name) if part)

        def start(mode: Literal["online", "offline"]) -> wandb.Run:
            return wandb.init(
                project=self.config.project,
                entity=self.config.entity,
                name=self.config.run_name or name,
                id=hashlib.sha256(f"{run.plan.key}:{run.folder.resolve()}".encode()).hexdigest()[:16],
                resume="allow" if mode == "online" else None,
                group=run.group,
                job_type=run.name,
                tags=list(self.config.tags),
                config={**run.config_json, "preftune": {**about, **lineage, "data": plan.get("data")}},
                dir=str(run.folder),
                mode=mode,
                reinit="create_new",
                save_code=False,
                settings=wandb.Settings(
                    silent=True, quiet=True, console="off", x_disable_meta=True, init_timeout=CONNECT_S
                ),
            )

        try:
            return start("online" if self.mode is WandbMode.online else "offline")
        except wandb.errors.Error:
            if WandbMode(self.config.mode) is not WandbMode.auto or self.mode is not WandbMode.online:
                raise
            self.mode = WandbMode.offline
            return start("offline")

    def _use_parents(self, run: Run) -> None:
        """Link the parents' artifacts; one that this W&B project never saw stays in the config alone."""
        import wandb

        for parent in run.parents:
            if self.wandb_run is not None:
                try:
                    self.wandb_run.use_artifact(f"{artifact_name(parent['stage'], parent['key'])}:latest")
                except (wandb.errors.Error, ValueError):
                    continue

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self.wandb_run is not None:
            self.wandb_run.log({**values, "step": step})

    def _log_all_samples(self, step: int) -> None:
        import wandb

        if self.rows:
            self._log(step, {"samples/all": wandb.Table(columns=list(COLUMNS), data=self.rows)})

    def _log_artifact(self, run: Run, result: StageResult) -> None:
        import wandb

        folder = run.folder / "artifact"
        if self.wandb_run is None or not folder.is_dir():
            return
        artifact = wandb.Artifact(
            artifact_name(run.name, run.plan.key),
            type="reward_model" if run.name == "reward" else "model",
            metadata={
                "key": run.plan.key,
                "stage": run.name,
                "algorithm": run.plan.algorithm,
                "verified": result.verified,
                "parents": [f"{parent['stage']} {parent['key']}" for parent in run.parents],
            },
        )
        if self.config.log_artifacts:
            for path in sorted(folder.rglob("*")):  # add_dir would print to the console
                if path.is_file():
                    artifact.add_file(str(path), name=path.relative_to(folder).as_posix())
        else:
            artifact.add_reference(folder.resolve().as_uri(), name="artifact", checksum=False)
        manifest = run.folder / "artifact.json"
        if manifest.is_file():
            artifact.add_file(str(manifest), name="artifact.json")
        self.wandb_run.log_artifact(artifact)

    def _close(self, exit_code: int) -> None:
        if self.wandb_run is not None:
            current, self.wandb_run = self.wandb_run, None
            current.finish(exit_code=exit_code)


def artifact_name(stage: str, key: str) -> str:
    """W&B name of a stage's artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{stage}-{key[:12]}")


def _row(step: int, place: int, row: dict[str, Any]) -> list[Any]:
    whole = {"when": "step", "step": step, "index": place, **row}
    texts = ("when", "prompt", "completion", "answer")
    return [str(whole[name]) if name in texts and whole.get(name) is not None else whole.get(name) for name in COLUMNS]


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str | bool | int | float):
            flat[name] = value
        elif name in ("interval", "delta_interval") and isinstance(value, list) and len(value) == 2:
            flat[f"{name}_low"], flat[f"{name}_high"] = value
    return flat
