"""Names of the public API that were renamed: the old one works, with a warning, until an API version takes it away.

Torch-free.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from core.platform.hookspecs import API_VERSION, Deprecated


class Renamed(NamedTuple):
    """What became of an old name of a module."""

    new: str
    """What replaces it: while the old name still works, a name of the same module."""
    until: int
    """API version in which the old name is gone."""


def renamed_names(
    module: str, names: Mapping[str, Renamed], later: Mapping[str, str] = MappingProxyType({})
) -> Callable[[str], Any]:
    """`__getattr__` of a module whose old names are the keys of `names`; those of `later` are imported when asked for.

    An old name gives what the new one gives and raises a Deprecated warning at the line that asked for it; where that
    is an entry module, every start names its plugin. From API version `until` on it raises ImportError, which also
    says what to write.
    """

    def lookup(name: str) -> Any:
        if name in later:
            return getattr(importlib.import_module(later[name]), name)
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        new, until = names[name]
        if until <= API_VERSION:
            raise ImportError(f"{module}.{name} went with API {until}; write {new}")  # `from` would hide another error
        told = f"{module}.{name} is now {module}.{new}, and goes with API {until}; write {new} instead"
        warnings.warn(told, Deprecated, stacklevel=2)
        return getattr(sys.modules[module], new)

    return lookup
