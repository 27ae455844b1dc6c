"""The texts of --help and `help`: what exists, read from the plugins themselves. Loads neither torch nor hydra."""

from __future__ import annotations

import sys
import textwrap

import core
from core.config import presets
from core.config.overrides import words
from core.errors import ConfigError
from core.platform.kinds import LISTED
from core.platform.registry import Registry
from core.platform.switches import is_switch
from core.settings.fields import field_docs
from core.settings.schema import RunConfig
from core.startup import starting
from core.suggest import did_you_mean

WIDTH = 110


def _block(title: str, rows: list[tuple[str, str]], least: int = 12) -> str:
    """A titled two-column block, the second column wrapped."""
    width = min(max([least, *(len(left) for left, _ in rows)]), 34)
    lines = [title]
    for left, right in rows:
        indent = " " * (width + 4)
        wrapped = textwrap.wrap(right, WIDTH - width - 4) or [""]
        head = f"  {left:<{width}}  " if len(left) <= width else f"  {left}\n{indent}"
        lines.append(f"{head}{wrapped[0]}".rstrip())
        lines += [f"{indent}{line}" for line in wrapped[1:]]
    return "\n".join(lines)


def _stage_rows(registry: Registry) -> list[tuple[str, str]]:
    rows = []
    for stage in registry.stage_names():
        algorithms = registry.algorithms(stage)
        for algorithm in algorithms or [""]:
            spec = registry.stages[(stage, algorithm)].spec
            text = ". ".join(part for part in (spec.summary.rstrip("."), spec.paper) if part)
            default = " (default)" if len(algorithms) > 1 and algorithm == registry.default_algorithm(stage) else ""
            rows.append((f"stage={stage} algorithm={algorithm}" if algorithm else f"stage={stage}", text + default))
    return rows


def _examples(registry: Registry) -> list[tuple[str, str]]:
    run = "python -m core"
    names = registry.stage_names()
    if not names:
        return []
    varied = next((name for name in names if registry.algorithms(name)), "")
    plain = next((name for name in names if not registry.algorithms(name)), names[0])
    rows = [
        (f"{run} stage={varied or plain}", "train on generated records, with the embedded model"),
        (f"{run} stage={varied or plain} dry_run=true", "print the plan and exit"),
        (f"{run} stage={plain} data.path=my.jsonl model.source=FOLDER", "your own records and model"),
        (f"{run} stage={plain} peft=lora peft.r=8", "train an adapter"),
        (f"{run} -m stage={plain} stage.lr=1e-5,3e-5", "one run for each value"),
    ]
    if varied:
        two = registry.algorithms(varied)[:2]
        rows.append((f"{run} -m stage={varied} algorithm={','.join(two)}", "one run for each algorithm"))
        rows.append((f"{run} stage={varied} algorithm={two[-1]} --help", "every setting of a stage"))
    return rows


def command(arguments: list[str]) -> int:
    """The command `help`, and `--help`: the overview, or every setting of the stage that is named."""
    arguments = [argument for argument in arguments if not is_switch(argument)]
    with starting():
        registry = Registry.load(strict=False)
        for line in registry.warnings:
            sys.stderr.write(f"warning: {line}\n")
        named = [argument for argument in arguments if argument.startswith(("stage=", "algorithm="))]
        sys.stdout.write(stage_help(named, registry) if named else overview(registry))
    return 0


def overview(registry: Registry) -> str:
    """The text of --help."""
    groups = presets.options(registry)
    group_rows = [(f"{name}=", ", ".join(names)) for name, names in groups.items() if names and name != "algorithm"]
    listed = {key: sorted(registry.table(LISTED[key])) for key in sorted(LISTED)}
    group_rows += [(f"{key}=[…]", ", ".join(names)) for key, names in listed.items() if names]
    defaults = {"dry_run", "reuse", "runs_dir", "group", "quant"}
    settings = [(f"{doc.name}={doc.default}", doc.doc) for doc in field_docs(RunConfig) if doc.name in defaults]
    flags = [
        ("-m, --multirun", "one run for each combination of the values separated by commas"),
        ("--cfg job [--resolve]", "print the composed configuration and exit"),
        ("--info searchpath", "print where presets are looked for"),
        ("--config-dir FOLDER", "a folder with presets of your own"),
        ("--hydra-help", "Hydra's own flags"),
        ("--version", "print the version"),
    ]
    blocks = [
        f"preftune {core.__version__}: preference and instruction tuning of language models, all of it in plugins\n\n"
        "usage: python -m core stage=NAME [algorithm=NAME] [group=CHOICE ...] [key=value ...]\n"
        "       python -m core COMMAND   (the script `preftune` is the same)",
        _block("stages", _stage_rows(registry) or [("(none)", "no stage is installed")]),
        _block("groups", group_rows),
        _block("settings (any key of the configuration can be set)", settings),
        _block("commands", [(name, entry.spec.summary) for name, entry in registry.commands.items()]),
        _block("flags", flags),
        "examples\n" + "\n".join(f"  {command:<66}  {text}" for command, text in _examples(registry)),
    ]
    return "\n\n".join(blocks) + "\n"


def stage_help(overrides: list[str], registry: Registry) -> str:
    """Every setting of the stage (and algorithm) that the overrides name. Raises ConfigError for unknown names."""
    stages = words(overrides, "stage")
    if not stages:
        raise ConfigError("no stage was named", mend=f"add stage=NAME with one of: {', '.join(registry.stage_names())}")
    stage = stages[-1]
    algorithms = registry.algorithms(stage)
    algorithm = (words(overrides, "algorithm") or [registry.default_algorithm(stage)])[-1]
    if (stage, algorithm) not in registry.stages:
        known = stage in registry.stage_names()
        kind, word, names = ("algorithm", algorithm, algorithms) if known else ("stage", stage, registry.stage_names())
        mend = f"choose one of: {', '.join(names)}" if names else "this stage has no algorithms"
        raise ConfigError(f"there is no {kind} '{word}'{did_you_mean(word, names)}", mend=mend)
    entry = registry.stages[(stage, algorithm)]
    spec = entry.spec
    title = f"stage={stage}" + (f" algorithm={algorithm}" if algorithm else "")
    facts = [
        ("summary", spec.summary),
        ("paper", spec.paper),
        ("brought by", str(entry.owner)),
        ("records", spec.data),
        ("models", ", ".join(spec.roles)),
        ("runs before it", ", ".join(f"{need} for the {role}" for role, need in spec.after.items())),
        ("rollouts", "in each step" if spec.rollouts else "before the first step" if spec.builds else "no"),
        ("other algorithms", ", ".join(name for name in algorithms if name != algorithm)),
    ]
    blocks = [_block(title, [(name, text) for name, text in facts if text])]
    docs = [doc for doc in field_docs(spec.config) if doc.name not in ("name", "algorithm")]
    for owner in dict.fromkeys(doc.owner for doc in docs):
        rows = [(f"stage.{doc.name}={doc.default}", f"[{doc.kind}] {doc.doc}") for doc in docs if doc.owner == owner]
        blocks.append(_block(f"settings of {owner}", rows, least=34))
    return "\n\n".join(blocks) + "\n"
