"""The command `diff`: what two runs were told differently, and what came of it. Torch-free."""

from __future__ import annotations

from core.api import CommandSpec, hookimpl


@hookimpl
def register_commands() -> list[CommandSpec]:
    """The command."""
    return [
        CommandSpec(
            "diff",
            "plugins.diff.runs:command",
            "compare settings and results of two runs: diff RUN RUN [--all]",
            usage="RUN RUN [--all]",
        )
    ]
