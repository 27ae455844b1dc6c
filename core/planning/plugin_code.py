"""What of plugins a result depends on, beside settings and records: their code, and what they say themselves.

preftune's own code is known by its version; that of others, who change theirs while they write it, by its content.
Torch-free.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import PluginError
from core.platform.hookspecs import PROJECT
from core.platform.owners import Owner
from core.platform.providers import blamed
from core.platform.registry import STAGE_HOOKS, Registry
from core.platform.spec_checks import Spec
from core.settings.convert import to_plain
from core.settings.schema import RunConfig


def plugin_parts(cfg: RunConfig, specs: Iterable[Spec], registry: Registry) -> dict[str, Any]:
    """The part of a stage's key that is about plugins, by plugin: JSON values.

    specs: the parts that the stage takes. Raises PluginError for a plugin whose `key_parts` are no JSON values.
    """
    parts: dict[str, Any] = {}
    for spec in specs:
        owner = registry.owner_of(spec)
        modules = {str(getattr(spec, "impl", "")), getattr(getattr(spec, "config", None), "__module__", "")}
        _add(parts, owner, modules - {""})
    for name in STAGE_HOOKS:
        for wrapper in getattr(registry.hook, name).get_hookimpls():
            _add(parts, registry.owner_named(wrapper.plugin_name), {wrapper.function.__module__})
    for answer in registry.hook.key_parts.get_hookimpls():
        owner = registry.owner_named(answer.plugin_name)
        with blamed(owner, "key_parts"):
            said = to_plain(answer.function(**dict.fromkeys(answer.argnames, cfg)))
        _add(parts, owner, {answer.function.__module__})
        try:
            good = isinstance(said, dict) and bool(json.dumps(said))
        except (TypeError, ValueError):
            good = False
        if not good:
            what = f"key_parts returned {said!r:.80}, which is no dictionary of JSON values"
            raise PluginError(what, str(owner), "return a dictionary of JSON values by name")
        parts.setdefault(owner.plugin, {})["said"] = said
    return parts


def answers_key_parts(registry: Registry, plugin: str) -> bool:
    """Whether a plugin says what the results that it changes depend on."""
    return any(answer.plugin_name == plugin for answer in registry.hook.key_parts.get_hookimpls())


def _add(parts: dict[str, Any], owner: Owner, modules: set[str]) -> None:
    if owner.distribution == PROJECT:
        return
    entry = parts.setdefault(owner.plugin, {"version": owner.version, "code": {}})
    for module in modules:
        top = module.partition(":")[0].partition(".")[0]
        entry["code"][top] = _code(top)


@functools.cache
def _code(top: str) -> str:
    """SHA-256 in hex over the Python files of a module or package; empty where it has none, e.g. a builtin one."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that was made by hand
        spec = None
    if spec is None:
        return ""
    digest = hashlib.sha256()
    for place in spec.submodule_search_locations or [spec.origin or ""]:
        root = Path(place)
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            if file.is_file():
                name = file.relative_to(root).as_posix() if root.is_dir() else file.name
                digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
