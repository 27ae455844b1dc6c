"""Files that prove to be what was written: JSON records that carry their checksum, folders whose files are known.

Against damage and accidents, not against malice: who changes a file on purpose can change its checksum too. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.files import sha256_file, write_json

CHECKSUM = "checksum"
"""Field of a record: SHA-256 in hex of its other fields."""


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of `value` and its checksum. Raises ArtifactError when the disk refuses."""
    write_json(path, {**value, CHECKSUM: _digest(value)})


def read_record(path: Path, proved_since: int) -> dict[str, Any]:
    """A record, without its checksum.

    proved_since: `version` from which on the records of this kind carry a checksum; older ones are taken without.
    Raises ValueError, whose text says what is wrong: `… is missing`, `… was altered after it was written`.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    checksum, version = value.pop(CHECKSUM, None), value.get("version")
    older = checksum is None and type(version) is int and 0 < version < proved_since
    if not older and checksum != _digest(value):
        raise ValueError(f"{path.name} was altered after it was written")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    # As it is read back: JSON knows neither tuples nor keys that are no texts.
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def files_under(folder: Path) -> dict[str, Path]:
    """Whatever stands under `folder` and is no directory, by its path within; a link to a directory counts as one
    entry."""
    found = {}
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(place) / name
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 in hex of each file under `folder`."""
    return {name: sha256_file(path) for name, path in files_under(folder).items()}


def seal_folder(folder: Path, **facts: Any) -> None:
    """Write `<folder>.json` beside a folder that is whole: the checksums of its files, and what it was made from."""
    write_record(_seal(folder), {"version": 1, **facts, "files": checksums(folder)})


def seal_fault(folder: Path, **facts: Any) -> str | None:
    """Why a folder is not what `seal_folder` sealed with these facts; None where it is."""
    try:
        known = read_record(_seal(folder), proved_since=0)
    except ValueError as error:
        return str(error)
    if any(known.get(name) != value for name, value in facts.items()):
        return "it was made from something else"
    return folder_fault(folder, known.get("files"))


def _seal(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def folder_fault(folder: Path, known: object, since: str = "written") -> str | None:
    """How the files under `folder` differ from those that are known; None where they are the same, no more and no less.

    known: `checksums` of the folder, as it was written; of another type it counts as knowing no file. since: what
    was done with the folder then, for the message.
    """
    expected = known if isinstance(known, Mapping) else {}
    if not expected:
        return f"no file of {folder} is known"
    present = files_under(folder)
    for name in expected:
        if name not in present:
            return f"{folder / str(name)} is missing or cannot be read"
    for name, path in present.items():
        if name not in expected:
            return f"{path} was added after it was {since}"
        try:
            if not path.is_file() or sha256_file(path) != expected[name]:
                return f"{path} was altered after it was {since}"
        except OSError:
            return f"{path} is missing or cannot be read"
    return None
