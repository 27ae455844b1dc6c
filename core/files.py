"""Files that are whole or absent: write beside, then rename. Checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import ArtifactError, ModelError, PreftuneError


def cache_dir() -> Path:
    """Folder of converted models and generated data: $PREFTUNE_CACHE, else ~/.cache/preftune."""
    return Path(os.environ.get("PREFTUNE_CACHE") or Path.home() / ".cache" / "preftune")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash or a full disk leaves the old one or none, never half of it.

    Raises ArtifactError naming the path when the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    except BaseException:  # an interruption
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder. Raises ModelError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the file cannot be read: {error}".splitlines()[0], str(path), "copy it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"the file holds a {type(value).__name__}, not an object", str(path), "copy it again")
    return value


def object_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; renamed into place when the block ends well, removed when not.
    Its files then have the permissions that the umask gives.

    Raises ArtifactError when the disk refuses.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        even_permissions(part)
        sync_files(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        refused = disk_refusal(error)
        if refused is not None:
            raise disk_error(refused, folder) from error
        raise


def even_permissions(folder: Path) -> None:
    """Give every file under `folder` the permissions of a new file: libraries write some for their owner alone."""
    probe = folder / f".{os.getpid()}.permissions"
    probe.touch(0o666)
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | usual)


def sync_files(folder: Path) -> None:
    """Wait until every file under `folder` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def disk_guard(path: Path) -> Iterator[None]:
    """Within the block, what the disk refuses becomes an ArtifactError naming `path`."""
    try:
        yield
    except Exception as error:
        refused = disk_refusal(error)
        if refused is None:
            raise
        raise disk_error(refused, path) from error


def disk_refusal(error: BaseException) -> OSError | None:
    """The OSError behind what was raised, also where a library written in Rust put it into a text of its own; None
    for every other exception."""
    if isinstance(error, OSError):
        return error
    code = None if isinstance(error, PreftuneError) else re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def disk_error(error: OSError, path: Path) -> ArtifactError:
    """An OSError in the words of the user."""
    return ArtifactError(
        f"could not write: {error.strerror or error}",
        where=str(path),
        mend="free disk space or set runs_dir to another disk; nothing half-written was left behind",
    )
