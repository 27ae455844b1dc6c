"""Flags of a command; what they cannot take is refused as every other wrong word is. Torch-free."""

from __future__ import annotations

import argparse
from typing import NoReturn

from core.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError with its usage as the way to mend, and prints nothing. `name` is that
    of the command; flags may not be shortened."""

    def __init__(self, name: str) -> None:
        super().__init__(prog=name, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; argparse calls it for what it cannot take."""
        raise ConfigError(f"{self.prog}: {message}", mend=self.format_usage().strip())

    def parse_with_settings(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and the words `key=value`. Raises ConfigError for a flag that there is not."""
        asked, settings = self.parse_known_args(arguments)
        if flags := [word for word in settings if word.startswith("-")]:
            self.error(f"there is no flag '{flags[0]}'")
        return asked, settings
