"""What comes with core itself, registered on the road that every plugin takes: file formats, layouts of rows, commands.

An entry module like any other, found by its entry point; only that it cannot be switched off. Torch-free.
"""

from __future__ import annotations

from core.data import dialects, readers
from core.platform.hookspecs import hookimpl
from core.platform.specs import CommandSpec, DialectSpec, ReaderSpec

COMMANDS = (
    CommandSpec(
        "plugins", "core.commands.plugin_list:command",
        "list plugins, where they come from and what they add; --json for machines",
        usage="[--json] [plugins.allow=[NAME,…]] [plugins.block=[NAME,…]]",
    ),
    CommandSpec(
        "preview", "core.commands.preview.command:command",
        "show what a stage would train on, token by token: `preview stage=NAME data.path=FILE [--html FILE]`",
        usage="[key=value …] [--html FILE] [--rows N] [--sample N]",
    ),
    CommandSpec(
        "study", "core.commands.study:command",
        "compare the arms of an experiment over seeds: `study experiment=NAME`; without a name, list them",
        usage="experiment=NAME [key=value …]",
    ),
    CommandSpec(
        "doctor", "core.commands.doctor:command",
        "what is installed, what is missing and how to mend it, what may combine", usage="[--json]",
    ),
    CommandSpec(
        "new-plugin", "core.commands.scaffold:command", "write a package for a plugin: new-plugin NAME --kind KIND",
        usage="NAME --kind KIND [--into FOLDER]",
    ),
    CommandSpec(
        "reference", "core.commands.reference:command", "every setting of every stage, part and plugin, as Markdown",
        usage="[--own | --api]",
    ),
    CommandSpec("help", "core.commands.help:command", "this text; `help stage=NAME` prints every setting of a stage",
                usage="[stage=NAME [algorithm=NAME]]"),
)  # fmt: skip


@hookimpl
def register_readers() -> list[ReaderSpec]:
    """The formats that need no plugin."""
    return list(readers.BUILT_IN)


@hookimpl
def register_dialects() -> list[DialectSpec]:
    """The layouts that need no plugin."""
    return list(dialects.BUILT_IN)


@hookimpl
def register_commands() -> list[CommandSpec]:
    """The commands around a run."""
    return list(COMMANDS)
