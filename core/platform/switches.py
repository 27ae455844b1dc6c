"""Which plugins may load. Environment variables hold the switches, so that worker processes see the same ones;
`plugins.allow=[…]` and `plugins.block=[…]` on the command line set them for one command. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import ConfigError
from core.platform.hookspecs import PROJECT
from core.settings.schema import PluginsConfig

ALLOW_VARIABLE = f"{PROJECT.upper()}_ALLOW_PLUGINS"
"""Names of the plugins, or of the distributions, that are loaded and no others, separated by commas."""
DISABLE_VARIABLE = f"{PROJECT.upper()}_DISABLE_PLUGINS"
"""Names of entry points that are not loaded, separated by commas."""
MODULES_VARIABLE = f"{PROJECT.upper()}_PLUGINS"
"""Modules on `sys.path` that are loaded as plugins without packaging, separated by commas."""

OWN_PLUGIN = "core"
"""Entry point of core's own readers, dialects and commands, which no switch keeps out."""

_SWITCH = re.compile(r"\+{0,2}plugins\.(allow|block)=(.*)")
_VARIABLES = {"allow": ALLOW_VARIABLE, "block": DISABLE_VARIABLE}


@dataclass(frozen=True)
class Switches:
    """What the environment says about plugins."""

    allow: tuple[str, ...] | None
    """None lets every plugin load."""
    block: tuple[str, ...]
    modules: tuple[str, ...]

    @classmethod
    def read(cls) -> Switches:
        """The switches of this process."""
        allow = os.environ.get(ALLOW_VARIABLE)
        return cls(None if allow is None else _names(allow), _names(os.environ.get(DISABLE_VARIABLE, "")),
                   _names(os.environ.get(MODULES_VARIABLE, "")))  # fmt: skip

    def why_not(self, plugin: str, distribution: str) -> str:
        """Why a plugin may not load; empty when it may."""
        if plugin == OWN_PLUGIN:
            return ""
        if plugin in self.block:
            return f"named in plugins.block or {DISABLE_VARIABLE}"
        if self.allow is not None and not {plugin, distribution} & set(self.allow):
            return f"not named in plugins.allow or {ALLOW_VARIABLE}"
        return ""

    def unknown(self, plugins: set[str], distributions: set[str]) -> list[str]:
        """A line for each name that no plugin bears."""
        lines = [f"{DISABLE_VARIABLE} names '{name}', but there is no plugin of that name"
                 for name in sorted(set(self.block) - plugins)]  # fmt: skip
        return lines + [f"plugins.allow names '{name}', but there is no plugin or distribution of that name"
                        for name in sorted(set(self.allow or ()) - plugins - distributions)]  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip(" '\"") for name in text.split(",") if name.strip(" '\"")))


@contextmanager
def switched(arguments: list[str]) -> Iterator[None]:
    """Obey the switches of a command line inside the block: they must stand before any plugin is imported.

    Raises ConfigError for a switch that is not a list.
    """
    saved = {variable: os.environ.get(variable) for variable in _VARIABLES.values()}
    try:
        for argument in arguments:
            if not (found := _SWITCH.fullmatch(argument)):
                continue
            key, value = found[1], found[2].strip()
            if not re.fullmatch(r"\[[\w\s,.'\"-]*\]", value):
                raise ConfigError(
                    f"'plugins.{key}' must be a list of names, got '{value}'", f"plugins.{key}",
                    f"write plugins.{key}=[NAME,NAME]",
                )  # fmt: skip
            names = _names(value[1:-1])
            if key == "block":
                names = (*_names(os.environ.get(DISABLE_VARIABLE, "")), *names)
            os.environ[_VARIABLES[key]] = ",".join(names)
        yield
    finally:
        for variable, before in saved.items():
            if before is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = before


def is_switch(argument: str) -> bool:
    """Whether an argument is one of the switches of the command line."""
    return _SWITCH.fullmatch(argument) is not None


def check_switches(config: PluginsConfig) -> None:
    """Raise ConfigError where the composed configuration asks for a switch that was not obeyed: a preset is read after
    the plugins were imported, too late to keep one out."""
    switches = Switches.read()
    wanted = config.allow
    late = [f"plugins.block={name}" for name in config.block if name not in switches.block]
    if wanted is not None and (switches.allow is None or set(wanted) != set(switches.allow)):
        late.append(f"plugins.allow=[{','.join(wanted)}]")
    if late:
        raise ConfigError(
            f"{', '.join(late)} stands in a preset, which is read after the plugins were loaded",
            "plugins",
            f"give it on the command line, or set {ALLOW_VARIABLE} or {DISABLE_VARIABLE}",
        )
