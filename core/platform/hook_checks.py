"""Whether a plugin's hooks can be called, in plain words and with file and line, before pluggy is asked. Torch-free."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pluggy

from core.errors import PluginError
from core.platform.hookspecs import PROJECT
from core.suggest import did_you_mean


def place_of(function: Callable[..., Any]) -> str:
    """`FILE, line N` of a function; empty where it has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code is not None else ""


def check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Raise PluginError for a function marked as a hook that there is not, that asks for an argument which the hook
    does not give, or that is marked as a wrapper and is none."""
    known = {name: caller for name, caller in vars(manager.hook).items() if isinstance(caller, pluggy.HookCaller)}
    for function, hook, options in _marked(manager, plugin):
        where = place_of(function)
        if hook not in known:
            if not options.get("optionalhook"):
                what = f"there is no hook '{hook}'{did_you_mean(hook, known)}"
                raise PluginError(what, where, f"rename it, or leave @hookimpl out; hooks: {', '.join(sorted(known))}")
            continue
        spec = known[hook].spec
        given = spec.argnames if spec is not None else ()
        if spec is not None and (odd := [name for name in _asked(function) if name not in given]):
            what = f"the hook '{hook}' gives no argument '{odd[0]}'{did_you_mean(odd[0], given)}"
            raise PluginError(what, where, f"it may take: {', '.join(given) or 'nothing'}")
        if (options.get("wrapper") or options.get("hookwrapper")) and not inspect.isgeneratorfunction(function):
            what = f"the hook '{hook}' is marked as a wrapper, but does not yield"
            raise PluginError(what, where, "write `result = yield`, or leave wrapper=True out")


def _marked(
    manager: pluggy.PluginManager, plugin: object
) -> Iterator[tuple[Callable[..., Any], str, Mapping[str, Any]]]:
    """(function, name of its hook, options) of everything that is marked as a hook."""
    for name in dir(plugin):
        found = inspect.getattr_static(plugin, name, None)
        if getattr(getattr(found, "__func__", found), f"{PROJECT}_impl", None) is None:
            continue
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is not None:
            yield getattr(plugin, name), options.get("specname") or name, options


def _asked(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that have no default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]
