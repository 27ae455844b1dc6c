"""What a run can read: file formats and layouts of rows, the built-in ones and those of plugins. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.dialects import BUILT_IN as DIALECTS
from core.data.readers import BUILT_IN_READERS, Readers
from core.platform.specs import DialectSpec


@dataclass(frozen=True)
class Formats:
    """Readers, and dialects in the order in which they are tried."""

    readers: Readers = BUILT_IN_READERS
    dialects: tuple[DialectSpec, ...] = DIALECTS


BUILT_IN = Formats()
