"""The transform `augment_translated`: records with texts that `back-translate` has made. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.api import ConfigError, Record, TransformContext, Transformed, read_rows
from plugins.augment import TranslatedConfig
from plugins.augment.parts import PARTS, part_of, with_part

NAMES = ("of", "original", "text", "refused", "pivot", "model")
"""Fields of a row that are read here; all are texts."""


def read_translations(path: str) -> list[dict[str, Any]]:
    """Rows of the file. Raises: ConfigError for what is no file of `back-translate`."""
    file = Path(path).expanduser()
    rows = list(read_rows(file))
    fits = all(isinstance(row.get(name), str) for row in rows for name in NAMES)
    if not rows or not fits or any(row["of"] not in PARTS for row in rows):
        what = "there are no translations in this file" if file.is_file() else "there is no such file"
        raise ConfigError(what, str(file), "make one with the command `back-translate`")
    return rows


def build(config: TranslatedConfig) -> Callable[[Sequence[Record], TransformContext], Transformed]:
    """The augmentation. Raises: ConfigError for a file that cannot be used."""
    rows = read_translations(config.file)
    taken: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if not row["refused"]:
            taken[row["of"], row["original"]].append(row)

    def apply(records: Sequence[Record], context: TransformContext) -> Transformed:
        del context
        outcome = Transformed(list(records))
        used = set()
        for record in records:
            for part in PARTS:
                original = part_of(record, part)
                for row in taken.get((part, original or ""), ()):
                    used.add((part, original))
                    meta = {"augmented": "back-translation", "pivot": row["pivot"], "model": row["model"]}
                    outcome.added.append(with_part(record, part, row["text"], meta))
        outcome.facts = {
            "translations": len(rows),
            "refused": sum(bool(row["refused"]) for row in rows),
            "without_record": len(taken.keys() - used),
        }
        if not outcome.added:
            outcome.warnings.append(f"no record has a text that {config.file} translates")
        return outcome

    return apply
