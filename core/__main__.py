"""The only entry: answer help and commands at once, else compose, check and run. Torch-free until a job starts."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import core
from core import signals
from core.builtin import COMMANDS
from core.errors import ConfigError, PreftuneError, Reported
from core.platform.specs import CommandSpec
from core.platform.switches import is_switch, switched
from core.startup import starting

if TYPE_CHECKING:
    from core.platform.registry import Registered, Registry


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


def work_of(arguments: list[str]) -> Callable[[], int]:
    """What the arguments ask for, as something to be called: a run, or a command of core or of a plugin.

    Raises PreftuneError for words that ask for nothing.
    """
    asks = "--help" in arguments or "-h" in arguments
    if "--version" in arguments:
        return tell_version
    check_installation()
    if not arguments:
        return lambda: command("help")([]) or 2
    if re.fullmatch(r"[\w-]+", arguments[0]) and not arguments[0].startswith("-"):
        return partial(tell_usage, arguments[0]) if asks else partial(command(arguments[0]), arguments[1:])
    if asks:
        return partial(command("help"), arguments)
    from core.commands.run import run

    return partial(run, arguments)


def command(name: str) -> Callable[[list[str]], int]:
    """The command of core or of a plugin. Raises ConfigError where nobody brings it."""
    if own := built_in(name):
        module, _, function = own.impl.partition(":")
        found: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
        return found
    from core.platform.providers import blamed

    registry, entry = brought(name)
    for line in registry.warnings:
        sys.stderr.write(f"warning: {line}\n")
    work = registry.resolve(entry.spec)

    def call(arguments: list[str]) -> int:
        with blamed(entry.owner, f"the command '{name}'"):
            return int(work([argument for argument in arguments if not is_switch(argument)]) or 0)

    return call


def tell_version() -> int:
    """Print the version."""
    sys.stdout.write(f"preftune {core.__version__}\n")
    return 0


def tell_usage(name: str) -> int:
    """Print what a command does and takes. Raises ConfigError where nobody brings it."""
    spec = built_in(name) or brought(name)[1].spec
    sys.stdout.write(f"usage: python -m core {name} {spec.usage}".rstrip() + f"\n\n{spec.summary}\n")
    return 0


def built_in(name: str) -> CommandSpec | None:
    """Core's own command of that name."""
    return next((spec for spec in COMMANDS if spec.name == name), None)


def brought(name: str) -> tuple[Registry, Registered[CommandSpec]]:
    """The plugins, and the command of that name that one of them brings. Raises ConfigError where none does."""
    from core.config.overrides import bare_word
    from core.platform.registry import Registry

    registry = Registry.load()
    entry = registry.commands.get(name)
    if entry is None:
        raise bare_word(name, registry)
    return registry, entry


def main(arguments: list[str] | None = None) -> int:
    """Run preftune on `arguments` (the process's own by default); the exit code.

    0 done, 2 what the user named or wrote (configuration, records, models), 130 or 143 interrupted by SIGINT or
    SIGTERM, 1 everything else; an unexpected exception keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    with signals.obeyed():
        try:
            with switched(given):
                with starting():
                    work = work_of(given)
                return work()
        except PreftuneError as error:
            from core.platform.providers import tell

            tell(error)
            number = signals.pending()  # whose end may have been the cause of the error
            return 128 + number if number else error.exit_code
        except Reported as reported:
            return reported.exit_code
        except KeyboardInterrupt as error:
            sys.stderr.write("interrupted\n")
            return signals.exit_code(error)
        except BrokenPipeError:
            sys.stderr.close()
            return 1


if __name__ == "__main__":
    sys.exit(main())
