"""Lists of parts by name, `data.transforms` and `eval.metrics`, as typed configs. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import ConfigError
from core.platform.kinds import LISTED
from core.platform.registry import Registry
from core.settings.convert import from_plain
from core.suggest import did_you_mean


def named_configs(items: Sequence[Any], key: str, registry: Registry) -> list[Any]:
    """Each item of the list at `key`, a name or `{name: NAME, field: value}`, as the config of the part of that name.

    Raises ConfigError for a wrong name, field or value, naming its place.
    """
    what, table = LISTED[key].label, registry.table(LISTED[key])
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise ConfigError(f"'{key}' must be a list, got {items!r}", key, f"write {key}=[NAME, …]")
    configs = []
    for place, item in enumerate(items):
        at = f"{key}[{place}]"
        values = {"name": item} if isinstance(item, str) else item
        name = values.get("name") if isinstance(values, Mapping) else None
        if not isinstance(name, str):
            mend = "write it as {name: NAME, field: value}"
            raise ConfigError(f"'{at}' must be a {what} with a name, got {item!r}", mend=mend)
        if name not in table:
            known = sorted(table)
            mend = f"choose one of: {', '.join(known)}" if known else f"no plugin brings a {what}"
            mend = "; ".join(filter(None, (mend, registry.left_out(name))))
            raise ConfigError(f"there is no {what} '{name}'{did_you_mean(name, known)}", at, mend)
        configs.append(from_plain(table[name].spec.config, values, where=f"{what} '{name}'", key=at))
    return configs
