"""What every command must keep."""

from __future__ import annotations

from typing import Any, ClassVar

from core.platform.registry import Registry
from core.testing.contracts.base import Contract
from core.testing.run import command


class CommandContract(Contract):
    """A command of the command line."""

    command: ClassVar[str] = ""
    wrong: ClassVar[tuple[str, ...]] = ("--no-such-flag",)
    """Words that it cannot take."""

    def entry(self) -> Any:
        found = Registry.load().commands.get(self.command)
        assert found is not None, f"no plugin brings the command '{self.command}'"
        return found

    def test_help_lists_it(self) -> None:
        outcome = command("--help")
        assert f"\n  {self.command} " in outcome.out and self.entry().spec.summary[:20] in outcome.out

    def test_words_that_it_cannot_take_are_refused(self) -> None:
        """Exit code 2 and a message, not a traceback."""
        outcome = command(self.command, *self.wrong)
        assert outcome.code == 2 and outcome.err.startswith("error: "), outcome.err
        assert "Traceback" not in outcome.err
