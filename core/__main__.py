"""The only entry: answer help and commands at once, else compose, check and run. Torch-free until a job starts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import core
from core.errors import ConfigError, PreftuneError
from core.platform.switches import is_switch, switched


@dataclass(frozen=True)
class Command:
    """A word that may stand first on the command line."""

    summary: str
    run: Callable[[list[str]], int]
    """Gets the arguments after the word, returns the exit code."""


def plugins_command(arguments: list[str]) -> int:
    """List the plugins: where they come from, what they add, and why one is left out."""
    from core.commands import help as texts
    from core.platform.registry import Registry

    if unknown := [argument for argument in arguments if argument != "--json" and not is_switch(argument)]:
        raise ConfigError(f"'plugins' does not take '{unknown[0]}'", mend="plugins [--json] [plugins.allow=[NAME,…]]")
    registry = Registry.load(strict=False)
    registry.check_configs()
    if "--json" in arguments:
        import json

        rows = [record.as_dict() for record in registry.plugins]
        sys.stdout.write(json.dumps({"plugins": rows, "clashes": [e.what for e in registry.clashes]}, indent=2) + "\n")
    else:
        sys.stdout.write(texts.plugin_table(registry))
    return 1 if registry.clashes else 0


def help_command(arguments: list[str]) -> int:
    """Print the overview, or every setting of the stage that is named."""
    from core.commands import help as texts
    from core.platform.registry import Registry

    arguments = [argument for argument in arguments if not is_switch(argument)]
    registry = Registry.load(strict=False)
    for line in registry.warnings:
        sys.stderr.write(f"warning: {line}\n")
    named = [argument for argument in arguments if argument.startswith(("stage=", "algorithm="))]
    if named:
        sys.stdout.write(texts.stage_help(named, registry))
    else:
        sys.stdout.write(texts.overview(registry, {name: command.summary for name, command in COMMANDS.items()}))
    return 0


def later(module: str) -> Callable[[list[str]], int]:
    """The function `command` of a module that is imported when it is called."""

    def run(arguments: list[str]) -> int:
        return int(importlib.import_module(module).command(arguments))

    return run


COMMANDS: dict[str, Command] = {
    "plugins": Command("list plugins, where they come from and what they add; --json for machines", plugins_command),
    "preview": Command(
        "show what a stage would train on, token by token: `preview stage=NAME data.path=FILE [--html FILE]`",
        later("core.commands.preview.command"),
    ),
    "doctor": Command(
        "what is installed, what is missing and how to mend it, what may combine", later("core.commands.doctor")
    ),
    "new-plugin": Command("write a package for a plugin: new-plugin NAME --kind KIND", later("core.commands.scaffold")),
    "reference": Command(
        "every setting of every stage, part and plugin, as Markdown", later("core.commands.reference")
    ),
    "help": Command("this text; `help stage=NAME` prints every setting of a stage", help_command),
}
"""Grows by an entry for each command around a run."""


def check_installation() -> None:
    """Raise ConfigError when another package of the same generic name stands before one of ours."""
    home = Path(__file__).resolve().parent
    if Path(core.__file__ or "").resolve().parent != home:
        raise ConfigError(f"'core' is {core.__file__}, not preftune's", mend="run `preftune`, or from another folder")
    for name in ("conf", "plugins", "reward_models"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        found = Path(spec.origin).resolve().parent
        if found.parent != home.parent and (home.parent / name / "__init__.py").is_file():
            raise ConfigError(
                f"the package '{name}' at {found} stands before preftune's own",
                where=str(found),
                mend="run the script `preftune`, or `python -P -m core`, or start from another folder",
            )


def dispatch(arguments: list[str]) -> int:
    """Do what the arguments say. Raises PreftuneError."""
    if "--version" in arguments:
        sys.stdout.write(f"preftune {core.__version__}\n")
        return 0
    check_installation()
    if not arguments or arguments[0] in COMMANDS:
        name, *rest = arguments or ["help"]
        return COMMANDS[name].run(rest) if arguments else help_command([]) or 2
    if "--help" in arguments or "-h" in arguments:
        return help_command(arguments)
    from core.commands.launch import launch

    return launch(arguments, tuple(COMMANDS))


def main(arguments: list[str] | None = None) -> int:
    """Run preftune on `arguments` (the process's own by default); the exit code.

    0 done, 2 the user's configuration, 130 interrupted, 1 everything else; an unexpected exception keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with switched(given):
            return dispatch(given)
    except PreftuneError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
