"""What a run can read: file formats and layouts of rows, the built-in ones and those of plugins. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.dialects import BUILT_IN as DIALECTS
from core.data.readers import BUILT_IN_READERS, Readers
from core.platform.registry import Registry
from core.platform.specs import DialectSpec
from core.platform.switches import OWN_PLUGIN


@dataclass(frozen=True)
class Formats:
    """Readers, and dialects in the order in which they are tried."""

    readers: Readers = BUILT_IN_READERS
    dialects: tuple[DialectSpec, ...] = DIALECTS


BUILT_IN = Formats()


def formats_of(registry: Registry) -> Formats:
    """The readers and dialects of a run; dialects of plugins are tried before core's own."""
    own: dict[bool, list[DialectSpec]] = {True: [], False: []}
    for entry in registry.dialects.values():
        own[entry.owner.plugin == OWN_PLUGIN].append(entry.spec)
    readers = Readers({suffix: entry.spec for suffix, entry in registry.readers.items()}, registry.resolve)
    return Formats(readers, (*own[False], *own[True]))
