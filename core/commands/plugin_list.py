"""`plugins [--json]`: every plugin, where it comes from, what it adds, and why one is left out. Torch-free."""

from __future__ import annotations

import json
import sys
import textwrap

from core.commands.help import WIDTH
from core.errors import ConfigError
from core.platform.registry import Registry
from core.platform.switches import is_switch


def command(arguments: list[str]) -> int:
    """The command `plugins`; exit code 1 where two plugins claim one name."""
    if unknown := [argument for argument in arguments if argument != "--json" and not is_switch(argument)]:
        raise ConfigError(f"'plugins' does not take '{unknown[0]}'", mend="plugins [--json] [plugins.allow=[NAME,…]]")
    registry = Registry.load(strict=False)
    registry.check_configs()
    if "--json" in arguments:
        rows = [record.as_dict() for record in registry.plugins]
        sys.stdout.write(json.dumps({"plugins": rows, "clashes": [e.what for e in registry.clashes]}, indent=2) + "\n")
    else:
        sys.stdout.write(table(registry))
    return 1 if registry.clashes else 0


def table(registry: Registry) -> str:
    """The text of `plugins`."""
    lines = []
    for record in registry.plugins:
        origin = f"{record.owner.distribution} {record.owner.version}".strip() or "a module on sys.path"
        api = f"API {record.api}" if record.api is not None else "API not stated"
        lines.append(f"{record.owner.plugin}  ({origin}, {record.module})  {record.state}, {api}")
        if record.reason:
            lines.append(f"    why:   {record.reason}")
        if record.adds:
            lines.append("\n".join(textwrap.wrap("adds:  " + ", ".join(record.adds), WIDTH, initial_indent="    ",
                                                 subsequent_indent="           ")))  # fmt: skip
        if record.hooks:
            lines.append(f"    hooks: {', '.join(record.hooks)}")
        if record.imports_torch:
            lines.append("    note:  its entry module imports torch, which slows every start down")
    lines += [f"clash: {error.what}\n    mend:  {error.mend}" for error in registry.clashes]
    return "\n".join(lines or ["no plugin was found"]) + "\n"
