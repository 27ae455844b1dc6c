"""What a model may forget, as texts and questions: general dialogues of our own, files of text and of multiple-choice
questions. Torch-free."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.files import not_found
from core.data.loading import load_records
from core.errors import ConfigError, DataError
from core.settings.schema import RetentionConfig

GENERAL: tuple[tuple[str, str], ...] = (
    ("What do plants need to grow?", "Plants need light, water, air, minerals from the soil and a mild temperature."),
    ("Name three large rivers.", "The Nile in Africa, the Amazon in South America and the Danube in Europe."),
    ("Why do we have seasons?", "The Earth's axis is tilted, so each half leans towards the Sun for part of the year."),
    ("Write a short thank-you note to a neighbour.", "Dear Ana, thank you for watering my flowers while I was away. "
     "They look lovely. Best wishes, Tom"),
    ("How do I boil an egg?", "Put the egg into boiling water, wait eight minutes, then cool it in cold water."),
    ("What is 12 plus 30?", "12 plus 30 is 42."),
    ("Translate 'good morning' into Spanish.", "'Good morning' is 'buenos días' in Spanish."),
    ("Write a line of Python that prints the numbers from 1 to 5.", "for number in range(1, 6): print(number)"),
)  # fmt: skip
"""Questions and answers that no training set of ours holds."""

QUESTION = "Question:"
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Choice:
    """A question whose options are scored by their likelihood: (context, continuation) of each, and the right one."""

    options: tuple[tuple[str, str], ...]
    gold: int


def check_retention(cfg: RetentionConfig) -> None:
    """Raise ConfigError or DataError for what could not be measured, before anything heavy loads."""
    if cfg.texts:
        load_text(cfg.texts)
    names = [set_name(path) for path in cfg.choices]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two sets of questions would be called '{name}'", "retention.choices", "rename one")
    for number, path in enumerate(cfg.choices):
        load_choices(path, cfg.max_items, f"retention.choices[{number}]")


def set_name(path: str) -> str:
    """What a set of questions is called in metrics: its file without suffix; a folder with its parent's name."""
    place = Path(path).expanduser()
    return f"{place.absolute().parent.name}_{place.name}" if place.is_dir() else place.name.partition(".")[0]


def load_text(path: str) -> str:
    """The raw text of a file, its records joined by line ends."""
    key = "retention.texts"
    place = _existing(path, key)
    texts = [record.text for record in load_records([place], key=key).records if record.text]
    if not texts:
        raise DataError("the file holds no raw text", str(place), "name a text file, or rows with a column `text`")
    return "\n".join(texts)


def load_choices(path: str, most: int, key: str = "retention.choices") -> list[Choice]:
    """Questions of a file, or of all files of a folder; at most `most`, spread evenly over them.

    Formats: JSON Lines of {query, choices, gold} or {context_options, continuation, gold}; CSV without header of
    question, options, letter. Raises ConfigError where there is no such file, naming `key`, DataError naming a line
    that is neither.
    """
    place = _existing(path, key)
    files = sorted(file for file in place.iterdir() if file.suffix in (".jsonl", ".csv")) if place.is_dir() else [place]
    found = [choice for file in files for choice in _read(file)]
    if not found:
        raise DataError("there are no questions", str(place), "name a .jsonl or .csv file of them, or their folder")
    count = min(most, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _existing(path: str, key: str) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        raise not_found(place, key, takes="a file")
    return place


def _read(file: Path) -> list[Choice]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the questions cannot be read: {error}", str(file), "use UTF-8 text") from error
    found = []
    lines = text.splitlines(keepends=True)
    rows: Any = enumerate(csv.reader(lines) if file.suffix == ".csv" else map(str.strip, lines), 1)
    for line, row in rows:
        if not row:
            continue
        try:
            found.append(_lettered(row) if file.suffix == ".csv" else _listed(json.loads(row)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"this is no multiple-choice question: {type(error).__name__}: {error}", f"{file}:{line}",
                "give {query, choices, gold} or {context_options, continuation, gold}; CSV: question, options, letter",
            ) from error  # fmt: skip
    return found


def _listed(row: dict[str, Any]) -> Choice:
    gold = int(row["gold"])
    if "context_options" in row:
        options = tuple((str(context), f" {row['continuation']}") for context in row["context_options"])
    else:
        query = str(row["query"])
        context = f"{query}\nAnswer:" if query.startswith(QUESTION) else query
        options = tuple((context, f" {choice}") for choice in row["choices"])
    return _checked(options, gold)


def _lettered(row: Sequence[str]) -> Choice:
    question, *texts, letter = row
    lines = [question, *(f"{LETTERS[place]}. {text}" for place, text in enumerate(texts)), "Answer:"]
    context = "\n".join(lines)
    return _checked(
        tuple((context, f" {LETTERS[place]}") for place in range(len(texts))), LETTERS.index(letter.strip())
    )


def _checked(options: tuple[tuple[str, str], ...], gold: int) -> Choice:
    if len(options) < 2 or not 0 <= gold < len(options):
        raise ValueError(f"{len(options)} options, of which number {gold} is right")
    return Choice(options, gold)
