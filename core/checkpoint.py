"""Checkpoints: atomic, checksummed, the last few kept; a damaged one is noticed and the one before it is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.files import disk_error

CHECKPOINT_VERSION = 1


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
    Raises ArtifactError when the disk refuses; the checkpoints before stay whole.
    """
    path = folder / f"step-{step:08d}"
    part = folder / f".{path.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part / "state.safetensors"
        )
        (part / "state.json").write_text(json.dumps({"version": CHECKPOINT_VERSION, "step": step, **state}))
        manifest = {file.name: _digest(file) for file in sorted(part.iterdir())}
        (part / "manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise disk_error(error, path) from error
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if "No space left" in str(error):
            raise disk_error(OSError(28, "No space left on device"), path) from error
        raise
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    manifest = path / "manifest.json"
    try:
        expected: dict[str, str] = json.loads(manifest.read_text())
        for name, digest in expected.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def load_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest whole checkpoint: its path, tensors, state, and a line about each damaged one passed over.

    None when there is no whole one.
    """
    notes: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = damage(path)
        if reason is None:
            return path, load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text()), notes
        notes.append(f"checkpoint {path.name} is damaged ({reason}); taking the one before")
    return None


def random_state() -> Tensor:
    """State of torch's global generator."""
    return torch.get_rng_state()
