"""Watches what plugins provide: the one that fails is named in the first line, and each one's seconds are counted.

A provider (stage, engine, optimizer, metric, reward model, data source, transform, command, plan edit, tracker's
constructor) that raises ends the run. Errors that preftune's own classes describe pass unchanged. Torch-free.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pluggy

from core.errors import PluginError, PreftuneError
from core.platform.hookspecs import PROJECT
from core.platform.owners import Owner
from core.secrets import without_secrets
from core.stopwatch import Stopwatch

_hookimpl = pluggy.HookimplMarker(PROJECT)


_BETWEEN = (str(Path(__file__).parents[1]), str(Path(pluggy.__file__).parent), "<frozen ", importlib.__file__)
"""Beginnings of the files that stand between us and a plugin: ours, pluggy's, and those that import it."""


class ProviderError(PluginError):
    """A plugin's own code failed; the exception is its `__cause__`."""


def raised_at(error: BaseException) -> str:
    """`FILE, line N, in NAME` of the plugin's code that an exception came through; empty where it came through none."""
    frames = traceback.extract_tb(error.__traceback__)
    # Before the plugin's frames stand our own, pluggy's, and those of torch's decorators.
    foreign = [item for item in frames if not item.filename.startswith(_BETWEEN) and "/torch/" not in item.filename]
    if not (foreign or frames):
        return ""
    frame = (foreign or frames)[0]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"


@contextmanager
def blamed(owner: Owner | str, doing: str) -> Iterator[None]:
    """Raise ProviderError, naming the plugin and the line of its code, for what the block raises by accident."""
    try:
        yield
    except PreftuneError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise ProviderError(
            f"{owner} failed in {doing}: {type(error).__name__}: {text}",
            where=raised_at(error),
            mend="the traceback below is for its author",
        ) from error


def tell(error: PreftuneError) -> None:
    """Print an error's lines on stderr, and what a plugin's author needs to find a fault of the plugin."""
    sys.stderr.write(without_secrets(f"error: {error}\n"))
    if isinstance(error, ProviderError) and error.__cause__ is not None:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(error.__cause__))))


class Providers:
    """Seconds by plugin, in its own calls: what another plugin takes inside a call is counted for that one."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        """before: seconds that were counted elsewhere, e.g. while the plan was made."""
        self._watch = Stopwatch(before)
        self.seconds = self._watch.seconds

    @contextmanager
    def at(self, owner: Owner, doing: str) -> Iterator[None]:
        """Count the block's wall-clock seconds for `owner`, and blame it for what goes wrong."""
        with self.counted(owner), blamed(owner, doing):
            yield

    def watched(self, call: Callable[..., Any], owner: Owner, doing: str) -> Callable[..., Any]:
        """`call`, its seconds counted for `owner`, which is blamed for what goes wrong."""

        def around(*args: Any, **kwargs: Any) -> Any:
            with self.at(owner, doing):
                return call(*args, **kwargs)

        return around

    def counted(self, owner: Owner) -> AbstractContextManager[None]:
        """Count the block's wall-clock seconds for `owner`."""
        return self._watch.counted(owner.plugin)

    def watch_hooks(self, manager: pluggy.PluginManager, owner: Owner, hooks: Iterable[str]) -> object:
        """Stand around these hooks, which `owner` answers, outside any other wrapper. Returns what was registered."""
        watch = type("Watch", (), {name: staticmethod(self._around(owner, name)) for name in hooks})()
        manager.register(watch, f"watch of {owner.plugin}")
        return watch

    def _around(self, owner: Owner, name: str) -> Callable[..., Any]:
        @_hookimpl(wrapper=True, tryfirst=True)
        def around() -> Iterator[Any]:
            with self.at(owner, name):
                return (yield)

        return around


class Watched:
    """Stands before an engine or scorer; the named methods are watched, everything else is its own."""

    def __init__(self, target: Any, providers: Providers, owner: Owner, methods: tuple[str, ...]) -> None:
        self._target, self._providers, self._owner, self._methods = target, providers, owner, methods

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._providers.watched(value, self._owner, name) if name in self._methods else value
