"""One exception tree. Every message answers three questions: what, where, how to mend it."""

from __future__ import annotations

import re
from typing import Self

from core.secrets import without_secrets


class PreftuneError(Exception):
    """Base of every error that preftune raises on purpose.

    what:  what is wrong, with the offending value.
    where: key path, file and line, or plugin and version ("" when there is no better place than `what`).
    mend:  what to type or change ("" when nothing can be advised).
    key:   the setting that is to blame, e.g. `stage.lr`; "" where there is none. Whoever knows the setting by another
        key makes the error say so with `at`.
    values: further texts, by name. With a key or a value the three texts are templates of `str.format`: `{key}` is the
        key, `{typed}` the same as it is typed on a command line, `{part}` the key of what holds the setting, e.g.
        `stage`, and `{name}` the value of that name.
    """

    exit_code = 1
    """What the command ends with."""

    def __init__(self, what: str, where: str = "", mend: str = "", *, key: str = "", **values: object) -> None:
        super().__init__(what, where, mend)
        self.key = key
        self._where = where
        self._values = {name: str(value) for name, value in values.items()}

    @property
    def what(self) -> str:
        """What is wrong."""
        return self._filled(self.args[0])

    @property
    def where(self) -> str:
        """Where."""
        return self._filled(self._where)

    @where.setter
    def where(self, text: str) -> None:
        self._where = text.replace("{", "{{").replace("}", "}}") if self._is_template else text

    @property
    def mend(self) -> str:
        """How to mend it."""
        return self._filled(self.args[2])

    def at(self, key: str) -> Self:
        """The same error with the setting under another key; as it is where it names none."""
        again = self._again()
        again.key = key if self.key else ""
        return again

    def within(self, place: str) -> Self:
        """The same error with `place` before its own where."""
        again = self._again()
        again.where = f"{place}: {self.where}" if self.where else place
        return again

    def _again(self) -> Self:
        """A copy, made without the constructor: a plugin's own class may have another one."""
        again = type(self).__new__(type(self), *self.args)
        again.__dict__.update(self.__dict__)
        return again

    @property
    def _keys(self) -> dict[str, str]:
        return {"key": self.key, "typed": typed_key(self.key), "part": self.key.rpartition(".")[0]}

    @property
    def _is_template(self) -> bool:
        return bool(self.key or self._values)

    def _filled(self, template: str) -> str:
        if not self._is_template:
            return template
        try:
            return template.format(**self._keys, **self._values)
        except (LookupError, ValueError, AttributeError):  # no template after all: better unfilled than lost
            return template

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
    """Records cannot be read or do not fit the stage. Exit code 2."""

    exit_code = 2


class ModelError(PreftuneError):
    """A model, tokenizer or adapter cannot be loaded or would train wrongly. Exit code 2."""

    exit_code = 2


class TrainingError(PreftuneError):
    """Training cannot go on: a non-finite loss, an engine out of step, no trained token."""


class ArtifactError(PreftuneError):
    """A checkpoint or artifact is incomplete, altered, or does not reload to what was saved."""


class Reported(Exception):
    """Work in another process failed, and its message was printed there."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def typed_key(key: str) -> str:
    """A key as Hydra reads it on a command line: `data.transforms[0].share` is typed `data.transforms.0.share`."""
    return re.sub(r"\[(\d+)\]", r".\1", key)


MAX_ERROR_CHARS = 300
"""Longer texts of foreign errors are cut."""


def describe(error: BaseException) -> str:
    """One line: "ValueError: text", without secrets, cut at MAX_ERROR_CHARS."""
    try:
        text = error.what if isinstance(error, PreftuneError) else str(error)
    except Exception:  # an exception whose own __str__ fails
        text = "(no text)"
    line = f"{type(error).__name__}: {without_secrets(' '.join(text.split()))}" if text else type(error).__name__
    return line if len(line) <= MAX_ERROR_CHARS else line[: MAX_ERROR_CHARS - 1] + "…"
