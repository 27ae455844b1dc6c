"""`preview`: what a stage would train on, token by token, without loading weights. Torch-free at import."""

from __future__ import annotations

from pathlib import Path

from core.commands.parser import CommandParser
from core.commands.preview.estimate import preview_codec
from core.commands.preview.found import HEAD, Preview, collect, histogram, lines_of, row_of
from core.config.typed import print_warnings, typed_config, with_stage
from core.console import Console
from core.files import write_text
from core.planning.make import make_plan
from core.platform.registry import Registry
from core.quiet import hush, set_environment


def command(arguments: list[str]) -> int:
    """Show in the terminal, and in an HTML file where one is asked for. The exit code."""
    parser = CommandParser("preview")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=3, metavar="N")
    parser.add_argument("--sample", type=int, default=2000, metavar="N")
    asked, overrides = parser.parse_with_settings(arguments)
    if asked.rows < 0 or asked.sample < 1:
        parser.error("--rows must be 0 or more, --sample 1 or more")
    set_environment()
    registry = Registry.load()
    print_warnings(registry)
    cfg, registry, _ = typed_config([*with_stage(overrides, registry), "reuse=false"], registry)
    hush()
    plan = make_plan(cfg, registry)
    stage = plan.target
    codec = preview_codec(stage, tokenizer_alone=True)
    found = collect(plan, stage, registry, codec, asked.sample, asked.rows)
    show(found, Console())
    if asked.html:
        from core.commands.preview.page import page

        write_text(asked.html, page(found))
        Console().line(f"\nwritten: {asked.html}")
    return 0


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
