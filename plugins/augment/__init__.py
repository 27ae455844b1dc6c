"""Augmentation: further training records with edited words, or with texts translated there and back by a model.
Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.api import CommandSpec, ConfigError, TransformConfig, TransformSpec, hookimpl, number


class Operation(str, Enum):
    """What is done to words."""

    delete = "delete"
    swap = "swap"
    mask = "mask"
    synonym = "synonym"
    insert = "insert"


class Target(str, Enum):
    """Which text of a record is edited."""

    prompt = "prompt"
    text = "text"


@dataclass
class WordsConfig(TransformConfig):
    """Settings of `augment_words`: the operations of Wei and Zou 2019, arXiv:1901.11196, and masking."""

    operation: Operation = Operation.swap
    """`delete`, `swap` two, `mask`, replace by a `synonym`, or `insert` a synonym of another word."""
    of: Target = Target.prompt
    """What is edited: the last message of the user in the `prompt`, or raw `text`. Completions are never edited."""
    rate: float = number(0.1, above=0, below=1)
    """Share of the words that are edited, one at least."""
    copies: int = number(1, above=0, at_most=1000)
    """Edited records made of one record."""
    share: float = number(1.0, above=0, at_most=1)
    """Share of the records that are augmented, drawn by the seed."""
    mask: str = "___"
    """What stands for a masked word."""
    synonyms: str | None = None
    """JSON file with an object of word to list of synonyms, for `synonym` and `insert`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operation in (Operation.synonym, Operation.insert) and not self.synonyms:
            what = f"operation={self.operation.value} needs a file of synonyms"
            raise ConfigError(what, mend='add synonyms: FILE with {"word": ["synonym", …], …}')


@dataclass
class TranslatedConfig(TransformConfig):
    """Settings of `augment_translated`."""

    file: str = ""
    """File that the command `back-translate` has written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file:
            raise ConfigError("augment_translated needs a file", mend="add file: FILE, made with `back-translate`")


@hookimpl
def register_commands() -> list[CommandSpec]:
    """The command that makes translations."""
    return [
        CommandSpec("back-translate", "plugins.augment.translate:command",
                    "translate texts of records there and back with a model, to augment with: "
                    "`back-translate data.path=FILE model.source=… --out FILE.jsonl`",
                    usage="[key=value …] --out FILE.jsonl [--of prompt|completion|text] [--pivot LANGUAGE] "
                    "[--language LANGUAGE] [--copies N] [--share FRACTION] [--forward TEXT] [--back TEXT] "
                    "[--temperature T] [--top-p P] [--max-new-tokens N] [--max-ratio X] [--batch N]"),
    ]  # fmt: skip


@hookimpl
def register_record_transforms() -> list[TransformSpec]:
    """The augmentations."""
    return [
        TransformSpec("augment_words", WordsConfig, "plugins.augment.words:build", "augment", "1",
                      "adds records with words deleted, swapped, masked, replaced or inserted"),
        TransformSpec("augment_translated", TranslatedConfig, "plugins.augment.translated:build", "augment", "1",
                      "adds records with texts that `back-translate` has made"),
    ]  # fmt: skip
