"""Keys: what an artifact, and what examples made for it, depend on, as one hash each. Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import __version__
from core.files import sha256_file
from core.planning.sources import artifact_folder, check_verified, folder_fingerprint, source_fingerprint
from core.settings.convert import to_plain
from core.settings.schema import ModelConfig, RunConfig

if TYPE_CHECKING:
    from core.planning.plan import StagePlan

_NOT_IN_KEY = {
    "stage": ("save_every_steps", "keep_checkpoints"),
    "data": ("path", "stream", "token_cache"),
}


def _file_hash(name: str | None) -> str | None:
    """SHA-256 of a file that the config names, or of the names and contents of a folder's files; None where there is
    nothing (whoever reads it says so)."""
    path = Path(name).expanduser() if name else None
    if path and path.is_dir():
        listed = [f"{file.name} {sha256_file(file)}" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return sha256_file(path) if path and path.is_file() else None


def _reward_fingerprint(cfg: RunConfig) -> str | None:
    """What identifies the weights that `reward.source` names; None where it names none.

    Raises ModelError for an artifact that was not verified or was altered since.
    """
    source = getattr(cfg.reward, "source", None)
    if not source:
        return None
    folder = artifact_folder(Path(source).expanduser())
    check_verified(folder, f"reward.source={source}")
    return folder_fingerprint(folder)


def _built_with(plan: StagePlan) -> dict[str, Any]:
    """The sources without the places that they were read from, and versions and owners of the transforms."""
    mixture = {name: {**to_plain(source), "path": None} for name, source in plan.cfg.data.mixture.items()}
    made = [[step.name, step.version, step.owner] for step in plan.dataset.info.transforms]
    return {"mixture": mixture, "made": made}


def artifact_key(plan: StagePlan) -> str:
    """Hash of all that the artifact depends on, 24 hex digits."""
    cfg = plan.cfg
    parts: dict[str, Any] = {
        "stage": to_plain(cfg.stage),
        "stage_files": {name: _file_hash(name) for name in cfg.stage.files()},
        **_start_parts(plan),
        "peft": to_plain(cfg.peft),
        "optimizer": {**to_plain(cfg.optimizer), "owner": to_plain(plan.optimizer.owner)},
        "data": {**to_plain(cfg.data), "fingerprint": plan.dataset.info.fingerprint, **_built_with(plan)},
        "eval": to_plain(cfg.eval),
        "retention": to_plain(cfg.retention),
    }
    if plan.reward:
        parts["reward"] = {**to_plain(cfg.reward), "source": _reward_fingerprint(cfg)}
    for part, names in _NOT_IN_KEY.items():
        for name in names:
            parts.get(part, {}).pop(name, None)
    return _digest(parts)


def build_key(plan: StagePlan, settings: dict[str, Any]) -> str:
    """Hash of all that examples made with the rollout engine depend on, 24 hex digits: the starting weights, engine,
    judge, records, and the stage's own `settings` for making them; not the settings of training."""
    parts = {**_start_parts(plan), "records": plan.dataset.info.fingerprint, "settings": settings}
    return _digest(parts)


def _start_parts(plan: StagePlan) -> dict[str, Any]:
    """The parts of a key that say what the policy is at the start, and what samples from it and judges it."""
    cfg = plan.cfg
    parts: dict[str, Any] = {
        "model": {
            **to_plain(cfg.model),
            "source": plan.fingerprint,
            "chat_template": _file_hash(cfg.model.chat_template) or cfg.model.chat_template,
        },
        "parents": {kind: parent.key for kind, parent in plan.parents.items()},
        "quant": cfg.quant.value,
        "runtime": to_plain(cfg.runtime),
        "code": {"preftune": __version__, "owner": plan.owner},
    }
    if plan.engine:
        parts["rollout"] = {**to_plain(cfg.rollout), "name": plan.engine.name}
    if plan.judge:
        source = getattr(cfg.judge, "source", None)
        weights = {"source": source_fingerprint(ModelConfig(source=source))} if source else {}
        parts["judge"] = {**to_plain(cfg.judge), **weights}
    return parts


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
