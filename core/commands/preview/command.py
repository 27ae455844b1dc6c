"""`preview`: what a stage would train on, token by token, without loading weights. Torch-free at import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from core.commands.launch import print_warnings, typed_config
from core.commands.preview.estimate import preview_codec
from core.commands.preview.found import HEAD, Preview, collect, histogram, lines_of, row_of
from core.console import Console
from core.errors import ConfigError
from core.files import write_text
from core.planning.plan import make_plan
from core.platform.registry import Registry
from core.quiet import hush, set_environment


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"preview: {message}", mend=self.format_usage().strip())


def command(arguments: list[str]) -> int:
    """Show in the terminal, and in an HTML file where one is asked for. The exit code."""
    parser = _Parser(prog="preview", add_help=False, allow_abbrev=False)
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=3, metavar="N")
    parser.add_argument("--sample", type=int, default=2000, metavar="N")
    asked, overrides = parser.parse_known_args(arguments)
    if asked.rows < 0 or asked.sample < 1:
        parser.error("--rows must be 0 or more, --sample 1 or more")
    if flags := [argument for argument in overrides if argument.startswith("-")]:
        parser.error(f"there is no flag '{flags[0]}'")
    set_environment()
    registry = Registry.load()
    print_warnings(registry)
    if not any(argument.startswith("stage=") for argument in overrides):
        overrides = [f"stage={_first_stage(registry)}", *overrides]
    cfg, registry, _ = typed_config([*overrides, "reuse=false"])
    hush()
    plan = make_plan(cfg, registry)
    stage = plan.target
    found = collect(plan, stage, preview_codec(stage), asked.sample, asked.rows)
    show(found, Console())
    if asked.html:
        from core.commands.preview.page import page

        write_text(asked.html, page(found))
        Console().line(f"\nwritten: {asked.html}")
    return 0


def _first_stage(registry: Registry) -> str:
    """The stage that is shown when none is named: the first that learns from demonstrations."""
    for (name, _), entry in sorted(registry.stages.items()):
        if entry.spec.data == "sft":
            return name
    raise ConfigError("no stage was named", mend="add stage=NAME")


def show(found: Preview, console: Console) -> None:
    """The preview in the terminal."""
    from rich.table import Table

    console.line(f"{found.title}, {found.model}, at most {found.max_length:,} tokens")
    for line in lines_of(found):
        console.line(line)
    table = Table(show_edge=False, pad_edge=False)
    for place, column in enumerate(HEAD):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for source in [*found.sources, *([found.whole] if len(found.sources) > 1 else [])]:
        table.add_row(*row_of(source))
    console.rich.print(table)
    bars = histogram(found.whole.lengths)
    most = max((count for *_, count in bars), default=1)
    console.line("\ntokens of an example")
    for low, high, count in bars:
        console.line(f"  {f'{low}–{high}':>11} {'█' * -(-40 * count // most)} {count:,}")
    for source in found.sources:
        if source.rows:
            console.line(f"\n{source.name}")
        for row in source.rows:
            console.row(row.label, row)
