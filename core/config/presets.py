"""Finds the YAML presets of preftune and its plugins, and refuses those that would change something else in silence.

Torch-free and hydra-free, so that help can list them at once.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, PluginError
from core.platform.kinds import KINDS
from core.platform.registry import Owner, Registry
from core.settings import peft_methods

OWN_FOLDER = "pkg://conf"
OWN = Owner("preftune", "preftune", "")


@dataclass(frozen=True)
class Preset:
    """One YAML file of a config group."""

    group: str
    name: str
    file: Path
    owner: Owner | None
    """None for a folder that the user gave."""


def locate(folder: str) -> Path | None:
    """The directory behind `pkg://package.sub`, `file:///path` or a plain path; None when it does not exist."""
    if folder.startswith("pkg://"):
        package, _, rest = folder.removeprefix("pkg://").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            return None
        places = list(spec.submodule_search_locations or []) if spec else []
        found = Path(places[0], rest) if places else None
    else:
        found = Path(folder.removeprefix("file://"))
    return found if found is not None and found.is_dir() else None


def preset_files(folder: Path, owner: Owner | None) -> list[Preset]:
    """Every `<group>/<name>.yaml` under a folder; files at its top belong to no group."""
    found = []
    for file in sorted(folder.rglob("*.yaml")):
        relative = file.relative_to(folder)
        if len(relative.parts) > 1 and not any(part.startswith((".", "_")) for part in relative.parts):
            found.append(Preset(relative.parent.as_posix(), file.stem, file, owner))
    return found


def all_presets(registry: Registry, user_folders: tuple[str, ...] = ()) -> list[Preset]:
    """The presets of preftune, then of the plugins, then of the user's folders."""
    presets = []
    folders: list[tuple[str, Owner | None]] = [(OWN_FOLDER, OWN), *registry.config_dirs]
    folders += [(folder, None) for folder in user_folders]
    for folder, owner in folders:
        place = locate(folder)
        if place is not None:
            presets += preset_files(place, owner)
    return presets


def registered(registry: Registry) -> dict[str, dict[str, Owner]]:
    """Group -> option -> owner of the typed options, which need no file."""
    found: dict[str, dict[str, Owner]] = {"stage": {}, "algorithm": {}}
    for (stage, algorithm), entry in registry.stages.items():
        found["stage"].setdefault(stage, entry.owner)
        if algorithm:
            found["algorithm"][registry.option_name(stage, algorithm)] = entry.owner
    for kind in KINDS:
        owners = {name: entry.owner for name, entry in registry.table(kind).items()}
        found |= {group: ({added: OWN} if added else {}) | owners for group, added in kind.groups.items()}
    return found


def options(registry: Registry, user_folders: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What every config group offers, sorted."""
    found: dict[str, set[str]] = {"experiment": set(), "peft": set(peft_methods.methods())}
    for group, names in registered(registry).items():
        found.setdefault(group, set()).update(names)
    for preset in all_presets(registry, user_folders):
        found.setdefault(preset.group, set()).add(preset.name)
    return {group: sorted(names) for group, names in sorted(found.items())}


def missing_folders(registry: Registry) -> list[str]:
    """A warning line for each config folder that a plugin names and that does not exist."""
    return [f"{owner} names the config folder {folder}, which does not exist"
            for folder, owner in registry.config_dirs if locate(folder) is None]  # fmt: skip


def check_presets(presets: list[Preset], typed: dict[str, dict[str, Owner]]) -> None:
    """Refuse a YAML file with the name of a registered part, and two files of one name.

    The first would change that part's defaults behind its owner's back; of the second only one would ever be read.
    typed: group -> name -> owner, see `registered`.
    """
    seen: dict[tuple[str, str], Preset] = {}
    for preset in presets:
        key = (preset.group, preset.name)
        mend = f"rename the file, e.g. {preset.group}/{preset.name}_mine.yaml"
        whose = str(preset.owner) if preset.owner else "your config folder"
        error = PluginError if preset.owner else ConfigError
        if (owner := typed.get(preset.group, {}).get(preset.name)) is not None:
            raise error(
                f"{preset.group}/{preset.name}.yaml of {whose} has the name of a {preset.group} that {owner} "
                "registers; it would change its defaults in silence",
                where=str(preset.file),
                mend=mend,
            )
        if key in seen:
            other = seen[key].owner
            raise error(
                f"{preset.group}/{preset.name}.yaml of {whose} has the name of a preset of {other or 'the same'}; "
                "only one of them would be read",
                where=str(preset.file),
                mend=mend,
            )
        seen[key] = preset
