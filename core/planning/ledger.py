"""Which run folder holds which key: the index that reuse and resume go by. Torch-free."""

from __future__ import annotations

import datetime
import fcntl
import itertools
from pathlib import Path
from typing import IO, NamedTuple

from core.errors import ArtifactError, ConfigError
from core.files import disk_error, object_in, write_json
from core.planning.model_folder import adapter_base, folder_fingerprint
from core.proof import folder_fault, read_record

PROVED_SINCE = 2
"""Version from which on artifact.json and result.json carry a checksum."""


class Found(NamedTuple):
    """What the ledger knows of a key.

    state: "reuse" for a finished verified run, "resume" for an interrupted one with a checkpoint, else "run".
    folder: its run folder; None where it must run anew.
    note: why a finished run is not reused; empty where there is nothing to say.
    """

    state: str
    folder: Path | None = None
    note: str = ""


class Ledger:
    """`<runs_dir>/.index/<key>.json` names the run folder of a key."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.index = runs_dir / ".index"

    def lookup(self, key: str) -> Found:
        """What can be had for `key`. An entry that cannot be read counts as none."""
        name = object_in(self.index / f"{key}.json").get("run_dir")
        if not isinstance(name, str) or not name or not (folder := self.runs_dir / name).is_dir():
            return Found("run")
        fault = artifact_fault(folder, key) or result_fault(folder)
        if fault is None:
            return Found("reuse", folder)
        finished = any((folder / name).exists() for name in ("artifact.json", "result.json"))
        note = f"{folder} is not reused: {fault}" if finished else ""
        if any((folder / "checkpoints").glob("step-*")):
            return Found("resume", folder, note)
        return Found("run", None, note or f"{folder} was begun and holds no checkpoint, so the stage starts anew")

    def open_folder(self, stage: str) -> Path:
        """A new run folder `<date>/<time>-<stage>`."""
        now = datetime.datetime.now()
        base = self.runs_dir / now.strftime("%Y-%m-%d")
        for attempt in itertools.count(1):
            suffix = f"-{attempt}" if attempt > 1 else ""
            folder = base / f"{now.strftime('%H%M%S')}-{stage}{suffix}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError as error:
                if not folder.is_dir():
                    raise _no_folder(folder, error) from error
            except OSError as error:
                raise _no_folder(folder, error) from error
        raise AssertionError("unreachable")

    def enter(self, key: str, folder: Path) -> None:
        """Make `folder` the one that `key` is looked for in. Called when the run is about to make its first step, so
        that a run which fails before leaves the entry as it was."""
        write_json(self.index / f"{key}.json", {"version": 1, "run_dir": str(folder.relative_to(self.runs_dir))})

    def lock(self, key: str) -> IO[str]:
        """Hold `key` for this process, so that the same command does not do the same work twice at a time.

        Raises ArtifactError when another process holds it, ConfigError where there can be no such file.
        """
        try:
            self.index.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _no_folder(self.index, error) from error
        return _lock(self.index / f"{key}.lock", f"the run with the key {key} in {self.runs_dir}")


def _no_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"could not make the run folder: {error.strerror}", str(folder), "set runs_dir to a folder you may write to"
    )


def artifact_fault(folder: Path, key: str = "") -> str | None:
    """Why the artifact in a run folder may not be read by a later stage; None for a verified one whose files are those
    that were verified, no more and no less.

    key: the key that the artifact must have; empty where any will do.
    """
    try:
        record = read_record(folder / "artifact.json", PROVED_SINCE)
    except ValueError as error:
        return str(error)
    verification = record.get("verification")
    if not isinstance(verification, dict) or verification.get("ok") is not True:
        return "its artifact did not pass its verification"
    if key and record.get("key") != key:
        return "its artifact belongs to another run"
    artifact = folder / "artifact"
    fault = folder_fault(artifact, record.get("files"), since="verified")
    base = adapter_base(artifact)
    if fault is None and record.get("base") and (base is None or folder_fingerprint(base) != record["base"]):
        return f"the model that its adapter was trained on was altered or is gone ({base or 'not found'})"
    return fault


def result_fault(folder: Path) -> str | None:
    """Why result.json does not tell of a finished run; None where it does."""
    try:
        read_record(folder / "result.json", PROVED_SINCE)
    except ValueError as error:
        return str(error)
    return None


def lock_folder(folder: Path) -> IO[str]:
    """Hold the run folder for this process; the lock ends with the process.

    Raises ArtifactError when another process holds it.
    """
    return _lock(folder / ".lock", str(folder))


def _lock(path: Path, what: str) -> IO[str]:
    try:
        file = path.open("w")
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(
            "another process is working on this run", what, "wait for it, or start anew with reuse=false"
        ) from error
    return file
