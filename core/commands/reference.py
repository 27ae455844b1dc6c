"""`reference`: every setting of every part as Markdown, read from the config dataclasses themselves. Torch-free, unless
the page of the public API is asked for."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from core.config import combinations
from core.errors import ConfigError
from core.platform.kinds import KINDS, TYPED_GROUPS
from core.platform.registry import Registry
from core.platform.switches import is_switch
from core.settings.fields import FieldDoc, field_docs
from core.settings.schema import RunConfig, StageConfig

HEAD = """# Settings

Written by `python -m core reference --own` from the config dataclasses; change it there. [config.md](config.md)
explains how settings are given. A `stage.` setting of a stage that the plan puts before the chosen one stands under
`upstream.<stage>.`.
"""


def command(arguments: list[str]) -> int:
    """The command `reference`: print the page of the settings, or with `--api` that of the public API.

    `--own` leaves out what strangers' plugins bring.
    """
    known = ("--own", "--api")
    if unknown := [argument for argument in arguments if argument not in known and not is_switch(argument)]:
        raise ConfigError(f"'reference' does not take '{unknown[0]}'", mend="reference [--own | --api]")
    if "--api" in arguments:
        from core.commands import api_page  # imports torch

        sys.stdout.write(api_page.page())
    else:
        sys.stdout.write(page(Registry.load(strict=False), own="--own" in arguments))
    return 0


def page(registry: Registry, own: bool = False) -> str:
    """The Markdown text. own: only what preftune's own distribution brings."""
    blocks = [HEAD, "## The whole run\n",
              _table("", RunConfig, skip={"stage", "upstream", *TYPED_GROUPS, *_parts()})]  # fmt: skip
    for name, config in _parts().items():
        blocks += [f"## {name}\n", _doc(config), _table(f"{name}.", config)]
    blocks += ["## stage: what every stage has\n", _table("stage.", StageConfig, skip=("name", "algorithm"))]
    kept = {key: entry for key, entry in registry.stages.items() if _kept(entry, own)}
    for (stage, algorithm), entry in sorted(kept.items()):
        title = f"stage={stage} algorithm={algorithm}" if algorithm else f"stage={stage}"
        text = ". ".join(part for part in (entry.spec.summary, entry.spec.paper) if part)
        blocks += [f"## {title}\n", f"{text}.\n", _table("stage.", entry.spec.config, base=StageConfig)]
    for kind, base in [(kind, kind.base) for kind in KINDS if kind.base and (kind.groups or kind.listed)]:
        group = f"an item of {kind.listed}, name" if kind.listed else next(iter(kind.groups))
        prefix = "" if kind.listed else f"{group}."  # an item of a list has keys of its own
        blocks += [f"## {group}: what every choice has\n", _table(prefix, base, skip=("name",))]
        for name, entry in sorted(registry.table(kind).items()):
            if _kept(entry, own):
                blocks += [f"## {group}={name}\n", f"{entry.spec.summary}.\n",
                           _table(prefix, entry.spec.config, base=base)]  # fmt: skip
    return "\n".join(block for block in blocks if block)


def _kept(entry: Any, own: bool) -> bool:
    return not own or entry.owner.distribution == combinations.DISTRIBUTION


def _parts() -> dict[str, type]:
    """The fields of RunConfig that are dataclasses with settings of their own."""
    found: dict[str, type] = {}
    for item in dataclasses.fields(RunConfig):
        if isinstance(item.default_factory, type) and dataclasses.is_dataclass(item.default_factory):
            found[item.name] = item.default_factory
    return found


def _doc(config: type) -> str:
    return " ".join((config.__doc__ or "").split()) + "\n"


def _table(prefix: str, config: type, base: type | None = None, skip: Any = ()) -> str:
    """Settings of a dataclass; those of `base` only where the dataclass declares them anew."""
    docs = [doc for doc in field_docs(config) if doc.name not in skip and doc.name not in ("name", "algorithm")]
    if base is not None:
        docs = [doc for doc in docs if doc.owner not in {parent.__name__ for parent in base.__mro__}]
    rows = [_row(prefix, doc) for doc in docs]
    return "\n".join(["| setting | type | default | what |", "|---|---|---|---|", *rows]) + "\n" if rows else ""


def _row(prefix: str, doc: FieldDoc) -> str:
    default = doc.default if doc.default.startswith("(") or not doc.default else f"`{doc.default}`"
    cells = (f"`{prefix}{doc.name}`", doc.kind, default, doc.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
