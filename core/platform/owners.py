"""Who a plugin is, what it does, and what it brought. Torch-free."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from core.platform.spec_checks import Spec
from core.platform.switches import MODULES_VARIABLE

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Owner:
    """The plugin that something came from."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        if not self.distribution:
            return f"plugin '{self.plugin}' (from {MODULES_VARIABLE})"
        return f"plugin '{self.plugin}' of {self.distribution} {self.version}"


@dataclass(frozen=True)
class Registered(Generic[S]):
    """A spec and who brought it."""

    spec: S
    owner: Owner


@dataclass
class PluginRecord:
    """What one plugin is, does and adds."""

    owner: Owner
    module: str
    """Value of the entry point."""
    hooks: list[str] = field(default_factory=list)
    adds: list[str] = field(default_factory=list)
    """`stage rlhf/<variant>`, `reward rules`, `config pkg://…`."""
    state: str = "loaded"
    """loaded; blocked (a switch keeps it out); overridden (its module is loaded under another name); broken."""
    reason: str = ""
    api: int | None = None
    """API version that it says it was built for; None where it says nothing."""
    imports_torch: bool = False
    """It dragged torch in while its entry module was imported."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `plugins --json`."""
        return {**dataclasses.asdict(self.owner), **{k: v for k, v in vars(self).items() if k != "owner"}}
