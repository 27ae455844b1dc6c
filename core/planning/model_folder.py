"""A folder of weights: what identifies it, and the folder of the plain model that an adapter in it stands on.

Torch-free.
"""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path

from core.files import object_in, sha256_file
from core.proof import files_under

ADAPTER_CONFIG = "adapter_config.json"
RECORD = "preftune.json"
"""File beside an artifact's weights: what transformers and peft have no place for."""
_REMEMBERED_BYTES = 2**24
"""Checksums of larger files are kept within a process: the base of a chain's adapters is asked for again and again."""


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 in hex over the names and contents of whatever a model may be read from: every file under `folder`
    (weights of all formats, code, vocabulary, templates) but hidden ones, and the base of an adapter."""
    digest = hashlib.sha256()
    seen: set[Path] = set()
    while (here := folder.resolve()) not in seen:
        seen.add(here)
        for name, path in files_under(folder).items():
            hidden = any(part.startswith(".") for part in name.split("/"))
            if path.is_file() and not hidden:
                digest.update(f"{name} {_sha256(path)}\n".encode())
        base = adapter_base(folder)
        if base is None:
            break
        digest.update(b"stands on\n")
        folder = base
    return digest.hexdigest()


def adapter_base(folder: Path) -> Path | None:
    """The local folder of the model that the adapter in `folder` was trained on: where it was then, else beside the
    adapter as it was then. None where there is no adapter, or no such folder."""
    recorded = _text(object_in(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    beside = _text(object_in(folder / RECORD).get("base"))
    for path in (Path(recorded), (folder / beside).resolve() if beside else None):
        if recorded and path is not None and (path / "config.json").is_file():
            return path
    return None


def _sha256(path: Path) -> str:
    found = path.stat()
    # A file that was just written may be written again within one tick of its clock.
    if found.st_size < _REMEMBERED_BYTES or time.time() - found.st_mtime < 10:
        return sha256_file(path)
    return _remembered(path.resolve(), found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _remembered(path: Path, _inode: int, _size: int, _changed: int) -> str:
    return sha256_file(path)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
