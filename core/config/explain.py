"""Turns what Hydra and OmegaConf raise while composing into ConfigErrors in our own words. Torch-free."""

from __future__ import annotations

import re

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from core.config import presets
from core.config.check import wrong_type
from core.config.misplaced import unknown_key
from core.config.overrides import ALGORITHM_KEY
from core.errors import ConfigError, PreftuneError
from core.platform.registry import Registry
from core.settings.rules import LONGEST, shortened, shown
from core.suggest import did_you_mean

_PRESET = re.compile(r"In '([^']+)'")
_COULD_NOT_OVERRIDE = re.compile(r"Could not override '([^']+)'")
_COULD_NOT_DELETE = re.compile(r"Could not delete from config\. '([^']+)' does not exist")
_ANY = "correct the word, or leave it out; --help lists what there is"
"""How to mend what Hydra says no more of."""
_CHOSEN_TWICE = re.compile(
    r"Multiple values for ([\w/]+)\.|^([\w/]+) appears more than once|force-add of .*'\+\+([\w/]+)="
)


def explain(error: BaseException, registry: Registry, folders: tuple[str, ...] = ()) -> PreftuneError | None:
    """Our own error for an exception raised while composing; None when it is none of theirs."""
    for own in (error, error.__cause__, error.__context__):
        if isinstance(own, PreftuneError):
            return own
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error, registry, folders)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _not_composed(error, registry)
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else ""
        what = f"a YAML file cannot be read: {getattr(error, 'problem', None) or error}"
        return ConfigError(what, where, "correct the file")
    return ConfigError(shortened(str(error)), mend=_ANY) if isinstance(error, ValueError | OSError) else None


def _not_composed(error: HydraException | OmegaConfBaseException, registry: Registry) -> ConfigError:
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    preset = _PRESET.search(str(error))
    found = _of_cause(cause) if isinstance(cause, OmegaConfBaseException) else _of_text(str(error), registry)
    if preset and preset.group(1) != "preftune":
        return found.within(f"{preset.group(1)}.yaml")
    return found


def _of_cause(cause: OmegaConfBaseException) -> ConfigError:
    text = str(cause).splitlines()[0]
    full_key = str(cause.full_key or cause.key or "")
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and not isinstance(cause, InterpolationResolutionError):
        return unknown_key(full_key, cause.object_type, node=cause.parent_node)
    if isinstance(cause, ValidationError) and full_key:
        return wrong_type(full_key, cause.object_type, cause.value, text)
    mend = f"set {full_key}=… to another value, or leave it out" if full_key else _ANY
    return ConfigError(f"'{full_key}' is not accepted: {text}" if full_key else text, mend=mend)


def _of_text(text: str, registry: Registry) -> ConfigError:
    text = text.replace(ALGORITHM_KEY, "algorithm")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["the configuration is not accepted"]
    if lines[0].startswith("You must specify 'stage'"):
        stages = ", ".join(registry.stage_names())
        return ConfigError("no stage was named", mend=f"add stage=NAME with one of: {stages}")
    found = _COULD_NOT_OVERRIDE.search(text)
    if found and found.group(1).startswith("algorithm"):
        names = [name for name in registry.stage_names() if registry.algorithms(name)]
        return ConfigError("the chosen stage has no algorithms", mend=f"take a stage that has: {', '.join(names)}")
    if found:
        return unknown_key(found.group(1), None)
    return ConfigError(*_sign(lines[0], text) or (shortened(lines[0]), "", "; ".join(lines[1:]) or _ANY))


def _sign(line: str, text: str) -> tuple[str, str, str] | None:
    """What, where and mend of an override whose sign (+, ++, ~ or a comma) does not go with its key."""
    if twice := _CHOSEN_TWICE.search(line):
        group = next(filter(None, twice.groups()))
        return f"there is a choice of '{group}' already", "", f"write {group}=NAME, without '+'"
    if gone := _COULD_NOT_DELETE.search(line):
        return f"'{gone.group(1)}' is to be deleted, but is not there", "", "correct the key, or leave it out"
    if line.startswith("Could not append to config"):
        return line, "", "write the key without '+'"
    if "requires --multirun" in text or line.startswith("Ambiguous value"):
        return line, "", "add -m to sweep over the values, or quote the value: 'key=\"a,b\"'"
    return None


def _unreadable(error: OverrideParseException) -> ConfigError:
    key, _, value = error.override.partition("=")
    quoted = value and '"' not in value and "'" not in value and len(value) <= LONGEST
    mend = f"quote the value: '{key}=\"{value}\"'" if quoted else "check quotes and brackets"
    text = shortened(error.message.splitlines()[0])
    return ConfigError(f"cannot read {shown(error.override)}: {text}", mend=mend)


def _no_such_option(error: MissingConfigException, registry: Registry, folders: tuple[str, ...]) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    names = sorted(set(error.options or []) | set(presets.options(registry, folders).get(group, [])))
    if group == "stage" and (owners := sorted({stage for stage, algo in registry.stages if algo == name})):
        return ConfigError(
            f"'{name}' is an algorithm of stage '{owners[0]}', not a stage", mend=f"stage={owners[0]} algorithm={name}"
        )
    preset = _PRESET.search(str(error))
    where = f"{preset.group(1)}.yaml" if preset and preset.group(1) not in ("preftune", f"stage/{name}") else ""
    if group.startswith("hydra/"):
        mend = f"install the Hydra plugin that brings it, or choose one of: {', '.join(names)}"
    else:
        mend = f"choose one of: {', '.join(names)}" if names else f"no {group or 'preset'} is installed; leave it out"
    if not where:
        searched = re.findall(r"provider=([^,\n]+), path=(\S+)", str(error))
        where = "searched " + ", ".join(path for provider, path in searched if provider not in ("hydra", "schema"))
    label = "algorithm" if group == ALGORITHM_KEY.partition("@")[0] else group
    mend = "; ".join(filter(None, (mend, registry.left_out(name))))
    return ConfigError(f"there is no {label} '{name}'{did_you_mean(name, names)}", where=where, mend=mend)
