"""Checkpoints: atomic, checksummed, the last few kept; a damaged one is noticed and the one before it is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.files import atomic_folder

CHECKPOINT_VERSION = 1
_FILES = ("state.json", "state.safetensors")


def _digest(path: Path) -> str:
    """Checksum against truncation and bit rot, not against malice: fast enough for gigabytes."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            hasher.update(block)
    return hasher.hexdigest()


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write `step-<n>` into `folder`, beside first and renamed when whole; older ones beyond `keep` are removed.

    tensors: what changes in training, on any device. state: JSON values.
    Those of later steps, which a resumed run passed over as damaged, are removed too.
    Raises ArtifactError when the disk refuses; the checkpoints before stay whole.
    """
    path = folder / f"step-{step:08d}"
    with atomic_folder(path) as part:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part / "state.safetensors"
        )
        (part / "state.json").write_text(json.dumps({"version": CHECKPOINT_VERSION, "step": step, **state}), "utf-8")
        manifest = {name: _digest(part / name) for name in _FILES}
        (part / "manifest.json").write_text(json.dumps(manifest))
    found = sorted(folder.glob("step-*"))
    kept = [other for other in found if other.name <= path.name][-keep:]
    for other in (*found, *folder.glob(".step-*.part")):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)
    return path


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints, but not their folder: a verified run needs no way back, and they are large."""
    for path in (*folder.glob("step-*"), *folder.glob(".step-*.part")):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    try:
        expected = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read: {error}"
    if not isinstance(expected, dict) or sorted(expected) != sorted(_FILES):
        return "manifest.json does not name the files"
    for name in _FILES:
        if not (path / name).is_file():
            return f"{name} is missing"
        try:
            if _digest(path / name) != expected[name]:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None


def load_checkpoint(
    folder: Path, key: str = ""
) -> tuple[tuple[Path, dict[str, Tensor], dict[str, Any]] | None, list[str]]:
    """The newest whole checkpoint (its path, tensors, state; None when there is no whole one), and a line about each
    damaged one that was passed over.

    key: the key of the run that it must be of, as its state tells; empty where any will do.
    """
    notes: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = damage(path)
        if reason is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if key and state.get("key") != key:
                notes.append(f"the checkpoint {path.name} is left out: it is of another run")
                continue
            return (path, load_file(path / "state.safetensors"), state), notes
        notes.append(f"the checkpoint {path.name} is damaged and left out: {reason}")
    return None, notes
