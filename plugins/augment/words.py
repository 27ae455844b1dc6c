"""The transform `augment_words`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.api import ConfigError, Record, TransformContext, Transformed
from plugins.augment import Operation, WordsConfig
from plugins.augment.parts import part_of, with_part

_CORE = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)

Synonyms = Mapping[str, Sequence[str]]


def read_synonyms(path: str) -> dict[str, list[str]]:
    """The file's words, in lower case. Raises: ConfigError for a file that is no object of lists of texts."""
    file = Path(path).expanduser()
    mend = 'give a JSON file with {"word": ["synonym", …], …}'
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the synonyms cannot be read: {error}", str(file), mend) from error
    fits = isinstance(value, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) and word for word in words) for words in value.values()
    )
    if not fits or not any(value.values()):
        raise ConfigError("the synonyms are no object of word to list of words", str(file), mend)
    return {word.casefold(): words for word, words in value.items() if words}


def edited(text: str, config: WordsConfig, synonyms: Synonyms, rng: random.Random) -> str:
    """The text with a share of its words edited; the text itself where nothing can be edited. White space between
    words stays as it was, apart from that of words that come or go."""
    parts = re.split(r"(\s+)", text)
    places = [place for place in range(0, len(parts), 2) if parts[place]]
    if config.operation is Operation.insert or config.operation is Operation.synonym:
        places = [place for place in places if _core(parts[place]).casefold() in synonyms]
    least = 2 if config.operation in (Operation.swap, Operation.delete) else 1
    if len(places) < least:
        return text
    count = max(1, round(config.rate * len(text.split())))
    chosen = sorted(rng.sample(places, min(count, len(places) - least + 1)))
    for place in chosen:
        if config.operation is Operation.swap:
            other = rng.choice([one for one in places if one != place])
            parts[place], parts[other] = parts[other], parts[place]
        elif config.operation is Operation.mask:
            parts[place] = _with_core(parts[place], config.mask)
        elif config.operation is Operation.synonym:
            parts[place] = _with_core(parts[place], _synonym(parts[place], synonyms, rng))
        elif config.operation is Operation.delete:
            parts[place] = ""
            gap = place + 1 if place + 1 < len(parts) else place - 1
            parts[gap] = ""
    if config.operation is Operation.insert:
        new = [_synonym(parts[place], synonyms, rng).casefold() for place in chosen]
        for word in new:
            place = 2 * rng.randrange(len(parts) // 2 + 1)
            parts[place:place] = [word, " "]
    return "".join(parts)


def _core(word: str) -> str:
    """The word without punctuation around it."""
    match = _CORE.fullmatch(word)
    return match.group(2) if match else word


def _with_core(word: str, core: str) -> str:
    match = _CORE.fullmatch(word)
    return f"{match.group(1)}{core}{match.group(3)}" if match and match.group(2) else core


def _synonym(word: str, synonyms: Synonyms, rng: random.Random) -> str:
    """A synonym in the word's case."""
    core = _core(word)
    found = rng.choice(synonyms[core.casefold()])
    return found[:1].upper() + found[1:] if core[:1].isupper() else found


def build(config: WordsConfig) -> Callable[[Sequence[Record], TransformContext], Transformed]:
    """The augmentation. Raises: ConfigError for a file of synonyms that cannot be used."""
    synonyms = read_synonyms(config.synonyms) if config.synonyms else {}

    def apply(records: Sequence[Record], context: TransformContext) -> Transformed:
        outcome = Transformed(list(records))
        unchanged = 0
        for record in records:
            rng = random.Random(f"{context.seed}:{record.key}")
            if rng.random() >= config.share:
                continue
            for _ in range(config.copies):
                new = _edited_record(record, config, synonyms, rng)
                if new is None:
                    unchanged += 1
                else:
                    outcome.added.append(new)
        outcome.facts = {"operation": config.operation.value, "nothing_to_edit": unchanged}
        if not outcome.added:
            outcome.warnings.append(f"no record has a {config.of.value} with words to {config.operation.value}")
        return outcome

    return apply


def _edited_record(record: Record, config: WordsConfig, synonyms: Synonyms, rng: random.Random) -> Record | None:
    text = part_of(record, config.of.value) or ""
    new = edited(text, config, synonyms, rng)
    if new == text:
        return None
    return with_part(record, config.of.value, new, {"augmented": config.operation.value})
