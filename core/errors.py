"""One exception tree. Every message answers three questions: what, where, how to mend it."""

from __future__ import annotations


class PreftuneError(Exception):
    """Base of every error that preftune raises on purpose.

    what:  what is wrong, with the offending value.
    where: key path, file and line, or plugin and version ("" when there is no better place than `what`).
    mend:  what to type or change ("" when nothing can be advised).
    """

    exit_code = 1
    """What the command ends with."""

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)


class ConfigError(PreftuneError, ValueError):
    """The user's configuration is wrong. Exit code 2, before anything heavy is imported."""

    exit_code = 2


class PluginError(PreftuneError):
    """A plugin is broken, clashes with another, or asks for what is not installed."""


class DataError(PreftuneError, ValueError):
    """Records cannot be read or do not fit the stage."""


class ModelError(PreftuneError):
    """A model, tokenizer or adapter cannot be loaded or would train wrongly."""


class TrainingError(PreftuneError):
    """Training cannot go on: a non-finite loss, an engine out of step, no trained token."""


class ArtifactError(PreftuneError):
    """A checkpoint or artifact is incomplete, altered, or does not reload to what was saved."""


class Reported(Exception):
    """Work in another process failed, and its message was printed there."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


MAX_ERROR_CHARS = 300
"""Longer texts of foreign errors are cut."""


def describe(error: BaseException) -> str:
    """One line: "ValueError: text", cut at MAX_ERROR_CHARS."""
    try:
        text = error.what if isinstance(error, PreftuneError) else str(error)
    except Exception:  # an exception whose own __str__ fails
        text = "(no text)"
    line = f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__
    return line if len(line) <= MAX_ERROR_CHARS else line[: MAX_ERROR_CHARS - 1] + "…"
