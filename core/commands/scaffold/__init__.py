"""`new-plugin NAME --kind KIND`: a package whose tests pass as it stands, out of the templates beside this file."""

from __future__ import annotations

import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path

import core
from core.errors import ConfigError
from core.files import atomic_folder
from core.platform.hookspecs import API_VERSION

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Recipe:
    """What can be written."""

    title: str
    modules: tuple[str, ...]
    """Templates of modules beside `__init__.py`."""
    preset: str = ""
    """Path of the preset under `conf`, without the ending."""
    try_it: str = "preftune --help"
    """A command that shows it at work."""


KINDS = {
    "stage": Recipe("stage", ("stage.py",), "stage/${package}_strict", "preftune help stage=$package"),
    "reward": Recipe("reward model", ("reward.py",), "reward/${package}_double"),
    "judge": Recipe("judge", ("judge.py",), try_it="preftune stage=s3ft judge=$package data.path=FILE dry_run=true"),
    "engine": Recipe("rollout engine", ("engine.py",)),
    "optimizer": Recipe("optimizer", ("optimizer.py",), try_it="preftune stage=sft optimizer=$package dry_run=true"),
    "peft": Recipe("peft method", ("shape.py",), try_it="preftune stage=sft peft=$package dry_run=true"),
    "data": Recipe("data source", ("rows.py",), "data/$package", "preftune stage=sft data=$package dry_run=true"),
    "reader": Recipe("reader", (), try_it="preftune stage=sft data.path=FILE.$suffix dry_run=true"),
    "dialect": Recipe("dialect", (), try_it="preftune stage=sft data.path=FILE.jsonl dry_run=true"),
    "transform": Recipe("transform", (), try_it="preftune stage=sft 'data.transforms=[$package]' dry_run=true"),
    "texts": Recipe("text set", (), try_it="preftune stage=cft stage.directives=$package data.path=FILE dry_run=true"),
    "metric": Recipe("metric", (), try_it="preftune stage=sft 'eval.metrics=[$package]' dry_run=true"),
    "tracker": Recipe("tracker", ("tracker.py",), try_it="preftune stage=sft tracker=$package dry_run=true"),
    "observer": Recipe("observer", ()),
    "command": Recipe("command", (), try_it="preftune $name"),
}

USAGE = f"new-plugin NAME --kind {'|'.join(KINDS)} [--into FOLDER]"


def command(arguments: list[str]) -> int:
    """The command `new-plugin`. Raises ConfigError for arguments that it cannot take."""
    name, kind, into = _arguments(arguments)
    folder = write_package(name, kind, into)
    install = f"pip install -e '{folder}[test]'"
    sys.stdout.write(f"written: {folder}\nnext:    {install}\n         pytest {folder}\n         preftune plugins\n")
    return 0


def _arguments(arguments: list[str]) -> tuple[str, str, Path]:
    """(name, kind, folder to write into)."""
    options = {"--kind": "", "--into": "."}
    names: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, mark, value = argument.partition("=")
        if key in options:
            options[key] = value if mark else next(rest, "")
        elif argument.startswith("-"):
            raise ConfigError(f"'new-plugin' does not take '{argument}'", mend=USAGE)
        else:
            names.append(argument)
    if len(names) != 1:
        raise ConfigError("'new-plugin' takes one name", mend=USAGE)
    if options["--kind"] not in KINDS:
        raise ConfigError(f"there is no kind '{options['--kind']}'", "--kind", f"one of: {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", names[0]):
        raise ConfigError(
            f"'{names[0]}' cannot name a package", mend="use small letters, digits and '-', e.g. acme-thing"
        )
    if not Path(options["--into"]).is_dir():
        raise ConfigError(f"there is no folder '{options['--into']}'", "--into", "make it first")
    return names[0], options["--kind"], Path(options["--into"])


def _parts(package: str, chosen: Recipe) -> str:
    """What the files are for, one a line, as its README tells."""
    parts = [f"`{package}/__init__.py` says what there is and imports no torch"]
    parts += [f"`{package}/{module}` holds the work" for module in chosen.modules]
    parts += [f"`{package}/conf` holds the presets"] * bool(chosen.preset)
    parts += [f"`tests/test_contract.py` says what every {chosen.title} must keep"]
    return "\n".join(f"- {part}" for part in parts)


def write_package(name: str, kind: str, into: Path) -> Path:
    """Write the package into `into`/`name` and return that folder. Raises ConfigError where it exists."""
    chosen = KINDS[kind]
    folder = into / name
    if folder.exists():
        raise ConfigError(f"'{folder}' exists already", mend="take another name, or remove it")
    package = name.replace("-", "_")
    names = {"name": name.replace("_", "-"), "package": package, "suffix": package.replace("_", "")}
    values = {
        **names,
        "Class": "".join(part.capitalize() for part in package.split("_")),
        "kind": chosen.title,
        "article": "An" if chosen.title[0] in "aeiou" else "A",
        "version": core.__version__,
        "api": str(API_VERSION),
        "parts": _parts(package, chosen),
        "package_data": f'\n[tool.setuptools.package-data]\n{package} = ["conf/**/*.yaml"]\n' if chosen.preset else "",
        "try_it": string.Template(chosen.try_it).substitute(names),
    }
    files = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        ".gitignore": "common/dot-gitignore",
        ".github/workflows/test.yml": "common/ci.yml",
        f"{package}/__init__.py": f"{kind}/__init__.py",
        "tests/test_contract.py": f"{kind}/test_contract.py",
        **{f"{package}/{module}": f"{kind}/{module}" for module in chosen.modules},
    }
    if chosen.preset:
        files[f"{package}/conf/{string.Template(chosen.preset).substitute(package=package)}.yaml"] = f"{kind}/conf.yaml"
    with atomic_folder(folder) as draft:
        for path, template in files.items():
            target = draft / path
            target.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
            target.write_text(string.Template(text).substitute(values), encoding="utf-8")
    return folder
