"""Rewrites what the user typed into Hydra's language: `algorithm=`, and new keys of free dictionaries. Torch-free."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_args, get_origin

from core.errors import ConfigError
from core.platform.kinds import KINDS
from core.platform.registry import Registry
from core.settings.fields import field_names, hints_of
from core.settings.rules import shown, text_fault
from core.settings.schema import RunConfig
from core.suggest import did_you_mean, nearest

ALGORITHM_KEY = "algorithm@stage"
"""The algorithm group as Hydra knows it; users type `algorithm=`."""
SOURCES = "data.mixture"
"""Where sources stand by names that the user chooses; each is typed."""
_VALUE_FLAGS = frozenset(
    {
        "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
        "--experimental-rerun", "--info", "-i",
    }
)  # fmt: skip
"""Hydra's flags that take the next argument as their value."""
_WORD = re.compile(r"[\w-]+")
_NO_NAME = re.compile(r"null|true|false|[-+]?(inf|nan|\d[\d_.e+-]*)", re.IGNORECASE)
"""What Hydra reads as something else than a text."""
_ENDLESS = re.compile(r"\d{300}")
"""More digits than a number with a fraction can have."""
_ITEM = re.compile(r"\.\d+\.")
"""A key of a part in a list, `data.transforms.0.share`: the part's class is known by its name alone."""


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides)."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for argument in arguments:
        if takes_value and not (argument.startswith("-") or (flags[-1] in ("--info", "-i") and "=" in argument)):
            flags.append(argument)
            takes_value = False
        elif argument.startswith("-") and not argument.startswith("-="):
            flags.append(argument)
            takes_value = argument in _VALUE_FLAGS
        else:
            overrides.append(argument)
            takes_value = False
    return flags, overrides


def user_folders(flags: list[str]) -> tuple[str, ...]:
    """Folders given with --config-dir."""
    found = []
    for place, flag in enumerate(flags):
        if flag in ("--config-dir", "-cd") and place + 1 < len(flags):
            found.append(flags[place + 1])
        elif flag.startswith(("--config-dir=", "-cd=")):
            found.append(flag.partition("=")[2])
    return tuple(found)


def words(overrides: list[str], key: str) -> list[str]:
    """Plain words that the overrides give to a group: ["a", "b"] for `key=a,b`."""
    found: list[str] = []
    for override in overrides:
        name, mark, value = override.partition("=")
        if mark and name == key:
            found = [word.strip(" '\"") for word in value.split(",")]
    return [word for word in found if _WORD.fullmatch(word)]


@lru_cache(maxsize=256)
def _free_paths(config: type) -> tuple[str, ...]:
    """Paths of the fields of a dataclass, nested ones too, that are free dictionaries."""
    hints = hints_of(config)
    found: list[str] = []
    for item in fields(config):
        hint = hints.get(item.name)
        if get_origin(hint) is dict or hint is dict:
            found.append(item.name)
        elif isinstance(hint, type) and is_dataclass(hint):
            found += [f"{item.name}.{path}" for path in _free_paths(hint)]
    return tuple(found)


def _sources(overrides: list[str]) -> list[str]:
    """Names of the sources whose keys the overrides set."""
    found = [re.match(rf"{re.escape(SOURCES)}\.(\w+)\.", override) for override in overrides]
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _is_free(path: str, registry: Registry) -> bool:
    """Whether `path` is, or lies inside, a dictionary whose keys the user chooses."""
    if path.startswith(f"{SOURCES}."):
        return re.match(rf"{re.escape(SOURCES)}\.\w+\.columns(\.|$)", path) is not None
    if _ITEM.search(path):
        return True
    _, rest, configs = _classes_at(path, registry)
    return any(f"{rest}.".startswith(f"{free}.") for config in configs for free in _free_paths(config))


def _classes_at(path: str, registry: Registry) -> tuple[str, str, list[type]]:
    """(beginning of a path that names a part, the rest of it, the classes that the part may be of): `upstream.sft`,
    `lr` and those of all stages. A path that names no such part is one of the whole configuration."""
    before, _, rest = path.partition(".")
    part = before
    if part == "upstream":
        name, _, rest = rest.partition(".")
        part, before = "stage", f"upstream.{name}"
    table = _tables(registry).get(part)
    return ("", path, [RunConfig]) if table is None else (before, rest, [entry.spec.config for entry in table.values()])


def _inside_a_value(path: str, registry: Registry) -> str:
    """The setting in `path` that is a value, though keys follow it; empty where there is none."""
    before, rest, configs = _classes_at(path, registry)
    found = [_value_in(config, rest.split(".")) for config in configs if rest.partition(".")[0] in field_names(config)]
    return f"{before}.{found[0]}".lstrip(".") if found and all(found) else ""


def _value_in(config: type, names: list[str]) -> str:
    """Where a path through a class comes to a field that holds neither keys nor items; empty where it does not."""
    hint = hints_of(config).get(names[0])
    given = [one for one in get_args(hint) if one is not type(None)]
    hint = given[0] if type(None) in get_args(hint) and given else hint
    if len(names) == 1 or hint in (None, Any, dict) or get_origin(hint) is dict:
        return ""
    if is_dataclass(hint) and isinstance(hint, type):
        inner = _value_in(hint, names[1:])
        return f"{names[0]}.{inner}" if inner else ""
    return "" if get_origin(hint) in (list, tuple) and names[1].isdigit() else names[0]


def _tables(registry: Registry) -> dict[str, dict[Any, Any]]:
    """Part of the configuration to what can be chosen for it."""
    tables: dict[str, dict[Any, Any]] = {"stage": registry.stages}
    return tables | {group: registry.table(kind) for kind in KINDS if kind.base for group in kind.groups}


def _algorithm(value: str, stages: list[str], overrides: list[str], registry: Registry) -> str:
    """The value of `algorithm=` under Hydra's names; ConfigError where a chosen stage lacks it."""
    algorithms = [word.strip(" '\"") for word in value.split(",")]
    if not stages and not any(override.startswith("experiment=") for override in overrides):
        owners = sorted({stage for stage, name in registry.stages if name == algorithms[0]})
        mend = f"add stage={owners[0]}" if owners else f"take a stage that has algorithms: {_with_algorithms(registry)}"
        raise ConfigError(f"algorithm={value} needs a stage", mend=mend)
    known = [stage for stage in stages if stage in registry.stage_names()]
    for stage in known:
        names = registry.algorithms(stage)
        if not names:
            mend = f"leave algorithm= out, or take a stage that has algorithms: {_with_algorithms(registry)}"
            raise ConfigError(f"stage '{stage}' has no algorithms, so algorithm={value} cannot be chosen", mend=mend)
        for algorithm in algorithms:
            if _WORD.fullmatch(algorithm) and algorithm not in names:
                raise ConfigError(
                    f"stage '{stage}' has no algorithm '{algorithm}'{did_you_mean(algorithm, names)}",
                    where=f"algorithm={value}",
                    mend="; ".join(filter(None, (f"choose one of: {', '.join(names)}", registry.left_out(algorithm)))),
                )
    if len(known) == 1 and all(algorithm in registry.algorithms(known[0]) for algorithm in algorithms):
        return ",".join(registry.option_name(known[0], algorithm) for algorithm in algorithms)
    return value


def _with_algorithms(registry: Registry) -> str:
    names = [name for name in registry.stage_names() if registry.algorithms(name)]
    return ", ".join(names) or "(none is installed)"


def rewrite(overrides: list[str], registry: Registry) -> list[str]:
    """Overrides as Hydra reads them.

    `algorithm=x` becomes `algorithm@stage=x`; `peft.options.key=v`, and every other key in a free dictionary, becomes
    `++peft.options.key=v`. A source `data.mixture.NAME.key=v` is first made known by its name, so that its keys are
    typed like any other. Raises ConfigError for a word without `=` and for an algorithm that the stage lacks.
    """
    stages = words(overrides, "stage")
    rewritten = [f"++{SOURCES}={{{name}:{{}}}}" for name in _sources(overrides)]
    for override in overrides:
        key, mark, value = override.partition("=")
        check_word(key, value)
        if plain := _inside_a_value(key.lstrip("+~"), registry):
            raise ConfigError(f"'{plain}' holds no settings of its own, so there is no '{shown(key)[1:-1]}'",
                              mend=f"write {plain}=…")  # fmt: skip
        if not mark:
            if not override.startswith("~"):
                raise bare_word(override, registry)
            rewritten.append(override)
        elif key.lstrip("+").partition("@")[0] in _groups() and _chooses_nothing(value):
            group = key.lstrip("+").partition("@")[0]
            mend = f"write {group}=NAME, or leave it out; --help lists the names"
            raise ConfigError(f"'{group}' is chosen by a name, got {shown(value)}", mend=mend)
        elif key == "algorithm":
            rewritten.append(f"{ALGORITHM_KEY}={_algorithm(value, stages, overrides, registry)}")
        elif not key.startswith(("+", "~")) and "." in key and _is_free(key, registry):
            rewritten.append(f"++{override}")
        else:
            rewritten.append(override)
    return rewritten


@lru_cache(maxsize=1)
def _groups() -> frozenset[str]:
    """Words that choose by a name."""
    of_presets = ("stage", "algorithm", "experiment", "model", "data", "peft", "pipeline")
    return frozenset(of_presets) | {group for kind in KINDS for group in kind.groups}


def _chooses_nothing(value: str) -> bool:
    """Whether a value that should name something is a number, a truth value or nothing, or a list with such."""
    return any(_NO_NAME.fullmatch(word.strip(" []")) for word in value.split(","))


def check_word(key: str, value: str) -> None:
    """Raise ConfigError for what Hydra's reader would fail at without naming the key."""
    fault = text_fault(key) or text_fault(value)
    if not fault and _ENDLESS.search(value):
        fault = "a number of hundreds of digits"
    if fault:
        named = shown(key)[1:-1]
        raise ConfigError(f"'{named}' holds {fault}", mend=f"write {named}=… anew")


def bare_word(word: str, registry: Registry) -> ConfigError:
    """The error for a word that is no command and has no `=`."""
    meant = {name: name for name in registry.commands}
    meant |= {name: f"stage={stage} algorithm={name}" for stage, name in sorted(registry.stages, reverse=True) if name}
    meant |= {name: f"stage={name}" for name in registry.stage_names()}
    if word in meant:
        mend = f"write {meant[word]}"
    elif near := nearest(word, meant):
        mend = f"did you mean {meant[near]}?"
    else:
        mend = "write key=value; --help lists the groups and commands"
        mend = "; ".join(filter(None, (mend, registry.left_out(word))))
    return ConfigError(f"'{word}' is neither a command nor key=value", mend=mend)
