"""Keys: what an artifact, and what examples made for it, depend on, as one hash each. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import __version__
from core.files import sha256_file
from core.planning.model_folder import ADAPTER_CONFIG, folder_fingerprint
from core.planning.sources import artifact_folder, check_verified, source_fingerprint
from core.settings.convert import to_plain
from core.settings.schema import ModelConfig, RunConfig

if TYPE_CHECKING:
    from core.planning.plan import StagePlan

_LONGEST_PATH = 4096
_NOT_IN_KEY = {
    "stage": ("save_every_steps", "keep_checkpoints"),
    "data": ("path", "stream", "token_cache"),
}


def _file_hash(name: str | None) -> str | None:
    """SHA-256 of a file that the config names, or of the names and contents of a folder's files; None where there is
    nothing (whoever reads it says so)."""
    try:
        path = Path(name).expanduser() if name else None
        if path and path.is_dir():
            return folder_fingerprint(path)
        return sha256_file(path) if path and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a text that can be no path
        return None


def _named_files(value: Any) -> dict[str, str]:
    """The hashes of the files, and of the folders of models, that settings name wherever they stand, by their names.

    A word alone, without a slash or an ending, is no path: it may be the name of a part and of a folder by chance.
    """
    if isinstance(value, Mapping):
        return {name: found for item in value.values() for name, found in _named_files(item).items()}
    if isinstance(value, list):
        return {name: found for item in value for name, found in _named_files(item).items()}
    if not isinstance(value, str) or not value or "\n" in value or len(value) > _LONGEST_PATH:
        return {}
    try:
        path = Path(value).expanduser()
        if "/" not in value and not path.suffix:
            return {}
        named = path.is_file() or any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
    except (OSError, ValueError, RuntimeError):
        return {}
    found = _file_hash(value) if named else None
    return {value: found} if found else {}


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
        "retention_files": {name: _file_hash(name) for name in (cfg.retention.texts, *cfg.retention.choices) if name},
    }
    if plan.reward:
        parts["reward"] = {**to_plain(cfg.reward), "source": _reward_fingerprint(cfg)}
    for part, names in _NOT_IN_KEY.items():
        for name in names:
            parts.get(part, {}).pop(name, None)
    settings = [parts.get(name) for name in ("stage", "peft", "optimizer", "eval", "reward")]
    parts["named_files"] = _named_files(settings)
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
        "code": {"preftune": __version__, "owner": plan.owner, "plugins": plan.plugin_parts},
    }
    if plan.engine:
        parts["rollout"] = {**to_plain(cfg.rollout), "name": plan.engine.name}
    if plan.judge:
        source = getattr(cfg.judge, "source", None)
        weights = {"source": source_fingerprint(ModelConfig(source=source))} if source else {}
        parts["judge"] = {**to_plain(cfg.judge), **weights}
    parts["files"] = _named_files([parts.get("rollout"), parts.get("judge")])
    return parts


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
