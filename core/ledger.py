"""Which run folder holds which key: the index that reuse and resume go by. Torch-free."""

from __future__ import annotations

import datetime
import fcntl
import json
from pathlib import Path
from typing import IO

from core.errors import ArtifactError
from core.files import write_json


class Ledger:
    """`<runs_dir>/.index/<key>.json` names the run folder of a key."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.index = runs_dir / ".index"

    def lookup(self, key: str) -> tuple[str, Path | None]:
        """("reuse", folder) for a finished verified run, ("resume", folder) for an interrupted one with a checkpoint,
        else ("run", None)."""
        entry = self.index / f"{key}.json"
        if not entry.is_file():
            return "run", None
        folder = self.runs_dir / json.loads(entry.read_text())["run_dir"]
        if _verified(folder):
            return "reuse", folder
        checkpoints = folder / "checkpoints"
        if checkpoints.is_dir() and any(checkpoints.glob("step-*")):
            return "resume", folder
        return "run", None

    def open_folder(self, key: str, stage: str) -> Path:
        """A new run folder `<date>/<time>-<stage>`, entered in the index under `key`."""
        now = datetime.datetime.now()
        base = self.runs_dir / now.strftime("%Y-%m-%d")
        for attempt in range(1000):
            suffix = f"-{attempt + 1}" if attempt else ""
            folder = base / f"{now.strftime('%H%M%S')}-{stage}{suffix}"
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise ArtifactError(f"could not make the run folder: {error.strerror}", str(folder)) from error
        write_json(self.index / f"{key}.json", {"version": 1, "run_dir": str(folder.relative_to(self.runs_dir))})
        return folder


def _verified(folder: Path) -> bool:
    """Whether the folder's artifact was verified and its files still stand with their sizes."""
    record = folder / "artifact.json"
    if not record.is_file() or not (folder / "result.json").is_file():
        return False
    artifact = json.loads(record.read_text())
    sizes = artifact.get("sizes", {})
    return bool(artifact.get("verification", {}).get("ok")) and all(
        (folder / "artifact" / name).is_file() and (folder / "artifact" / name).stat().st_size == size
        for name, size in sizes.items()
    )


def lock_folder(folder: Path) -> IO[str]:
    """Hold the run folder for this process; the lock ends with the process.

    Raises ArtifactError when another process holds it.
    """
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(
            "another process is working on this run", str(folder), "wait for it, or start anew with reuse=false"
        ) from error
    return file
