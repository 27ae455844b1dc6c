"""The only entry: answer help and commands at once, else compose, check and run. Torch-free until a job starts."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import core
from core.commands.built_in import BUILT_IN
from core.errors import ConfigError, PreftuneError
from core.platform.switches import is_switch, switched


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
    if not arguments:
        run_command("help", [])
        return 2
    if arguments[0] in {spec.name for spec in BUILT_IN}:
        return run_command(arguments[0], arguments[1:])
    if "--help" in arguments or "-h" in arguments:
        return run_command("help", arguments)
    if re.fullmatch(r"[\w-]+", arguments[0]) and not arguments[0].startswith("-"):
        return run_command(arguments[0], arguments[1:])
    from core.commands.launch import launch

    return launch(arguments)


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command of core or of a plugin; its exit code. Raises ConfigError where nobody brings it."""
    if own := next((spec for spec in BUILT_IN if spec.name == name), None):
        module, _, function = own.impl.partition(":")
        return int(getattr(importlib.import_module(module), function)(arguments))
    from core.config.overrides import bare_word
    from core.platform.providers import blamed
    from core.platform.registry import Registry

    registry = Registry.load()
    entry = registry.commands.get(name)
    if entry is None:
        raise bare_word(name, registry)
    for line in registry.warnings:
        sys.stderr.write(f"warning: {line}\n")
    run = registry.resolve(entry.spec)
    with blamed(entry.owner, f"the command '{name}'"):
        return int(run([argument for argument in arguments if not is_switch(argument)]) or 0)


def main(arguments: list[str] | None = None) -> int:
    """Run preftune on `arguments` (the process's own by default); the exit code.

    0 done, 2 the user's configuration, 130 interrupted, 1 everything else; an unexpected exception keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with switched(given):
            return dispatch(given)
    except PreftuneError as error:
        from core.platform.providers import tell

        tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
