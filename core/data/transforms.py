"""What a filter, de-duplication, augmentation or check is given and what it gives; see core.data.transforming for how
they are carried out. Torch-free."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from core.data.readers import BUILT_IN_READERS
from core.data.readers.rows import Row
from core.data.records import Record
from core.errors import ConfigError


class TextPart(str, Enum):
    """Which text of a record a transform looks at."""

    record = "record"
    """Prompt and completion."""
    prompt = "prompt"
    """The prompt's messages but those of the system."""
    completion = "completion"
    """The completion, or both of a pair, or raw text; and tool calls."""


def texts_of(record: Record, part: TextPart = TextPart.record) -> list[str]:
    """Texts of a record: the prompt's messages, the completions (`chosen` and `rejected` of a pair), raw text, and tool
    calls among them. Raw text counts as completion. System messages are left out, because many records share one."""
    prompt = [
        text for message in record.prompt if message.role != "system" for text in (message.content, *message.calls)
    ]
    rest = [text for text in (record.completion, record.chosen, record.rejected, record.text) if text is not None]
    rest += record.calls
    return {TextPart.prompt: prompt, TextPart.completion: rest, TextPart.record: prompt + rest}[part]


def text_of(record: Record, part: TextPart = TextPart.record) -> str:
    """What `texts_of` gives, in one string with a line feed between two texts."""
    return "\n".join(texts_of(record, part))


# Scripts that are written without spaces: each character stands for a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Words for comparisons: Unicode's compatibility forms (NFKC) and case folded, punctuation left out. In scripts
    without spaces (Thai, Japanese, Chinese, …) each character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class TransformContext:
    """Second argument of a dedup, augment or check."""

    heldout: Sequence[Record]
    """Records that will not be trained on. Look, do not change."""
    seed: int
    """Seed of this transform at its place in the list."""

    def rows(self, path: str) -> Iterator[tuple[str, Row]]:
        """(file, row) of every row of a file or of the files in a folder, whatever their columns.

        Raises: ConfigError when there is nothing to read at `path`; DataError for a damaged file.
        """
        place = Path(path).expanduser()
        files = sorted(file for file in place.rglob("*") if BUILT_IN_READERS.reads(file)) if place.is_dir() else [place]
        if not files or not all(map(BUILT_IN_READERS.reads, files)):
            mend = f"name a file or folder of {BUILT_IN_READERS.known}"
            raise ConfigError(f"there are no rows at '{path}'", "", mend)
        for file in files:
            for row in BUILT_IN_READERS.rows(file):
                yield file.name, row


@dataclass
class Transformed:
    """What a dedup, augment or check gives."""

    records: list[Record]
    """Those that stay, in their order."""
    dropped: list[tuple[Record, str]] = field(default_factory=list)
    """Those that do not, and why. What stands before the first ": " is the kind of reason; kinds are counted."""
    added: list[Record] = field(default_factory=list)
    """New records; `meta` of the one that each came from."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values for plan and report."""
    warnings: list[str] = field(default_factory=list)
    """Lines for the terminal and the report."""


Filter = Callable[[Record], str]
"""Why a record does not stay; empty where it does."""
Transform = Callable[[Sequence[Record], TransformContext], Transformed]
