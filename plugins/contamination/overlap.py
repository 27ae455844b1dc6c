"""The transform `contamination`: word n-grams that training records share with evaluation texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.api import DataError, Record, TransformContext, Transformed, texts_of, words_of
from plugins.contamination import Action, ContaminationConfig

EXAMPLES = 5
"""Overlaps that the plan shows."""


@dataclass
class Index:
    """The n-grams of evaluation items, to be looked up by training texts."""

    ngram: int
    min_words: int
    items: list[tuple[str, int]] = field(default_factory=list)
    """File and line of each item that is long enough."""
    by_length: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    """Length in words to hash of the n-gram to numbers of items."""

    def add(self, file: str, line: int, texts: Iterable[str]) -> None:
        """One evaluation item."""
        number = len(self.items)
        long_enough = False
        for text in texts:
            words = words_of(text)
            length = min(self.ngram, len(words))
            if length < min(self.min_words, self.ngram):
                continue
            long_enough = True
            hashes = self.by_length.setdefault(length, {})
            for gram in _grams(words, length):
                numbers = hashes.setdefault(hash(gram), [])
                if not numbers or numbers[-1] != number:
                    numbers.append(number)
        if long_enough:
            self.items.append((file, line))

    def overlaps(self, texts: Iterable[str]) -> dict[int, str]:
        """Items that share an n-gram with the texts, each with the first n-gram."""
        found: dict[int, str] = {}
        for text in texts:
            words = words_of(text)
            for length, hashes in self.by_length.items():
                for gram in _grams(words, length):
                    for number in hashes.get(hash(gram), ()):
                        found.setdefault(number, " ".join(gram))
        return found


def _grams(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def leaves(value: Any) -> Iterator[str]:
    """Texts in a row of whatever shape."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)


def build(config: ContaminationConfig) -> Callable[[Sequence[Record], TransformContext], Transformed]:
    """The check."""

    def index(context: TransformContext) -> Index:
        made = Index(config.ngram, config.min_words)
        for path in config.against:
            for file, row in context.rows(path):
                value = row.value
                if config.columns and isinstance(value, dict):
                    value = [value.get(column) for column in config.columns]
                made.add(file, row.line, leaves(value))
        if config.heldout:
            for record in context.heldout:
                made.add(f"held out: {record.meta.get('file', '')}", record.meta.get("line", 0), texts_of(record))
        return made

    def apply(records: Sequence[Record], context: TransformContext) -> Transformed:
        evaluated = index(context)
        outcome = Transformed([])
        hit: set[int] = set()
        examples: list[dict[str, Any]] = []
        for record in records:
            found = evaluated.overlaps(texts_of(record))
            hit |= found.keys()
            if not found:
                outcome.records.append(record)
                continue
            number, words = next(iter(found.items()))
            file, line = evaluated.items[number]
            outcome.dropped.append((record, f"overlaps with an evaluation set: {file}, line {line}: '{words}'"))
            if len(examples) < EXAMPLES:
                train = f"{record.meta.get('file', '')}, line {record.meta.get('line', 0)}"
                examples.append({"evaluation": f"{file}, line {line}", "training": train, "words": words})
        outcome.facts = _facts(evaluated, hit, len(outcome.dropped), examples)
        return _act(outcome, records, config.action)

    return apply


def _facts(evaluated: Index, hit: set[int], records: int, examples: list[dict[str, Any]]) -> dict[str, Any]:
    files = Counter(file for file, _ in evaluated.items)
    found = Counter(evaluated.items[number][0] for number in hit)
    return {
        "evaluation_items": len(evaluated.items),
        "evaluation_items_found": len(hit),
        "training_records": records,
        "by_file": {file: {"items": count, "found": found[file]} for file, count in files.items()},
        "overlaps": examples,
    }


def _act(outcome: Transformed, records: Sequence[Record], action: Action) -> Transformed:
    """What the config asks for where there is an overlap."""
    if not outcome.dropped or action is Action.drop:
        return outcome
    facts = outcome.facts
    what = (
        f"{len(outcome.dropped)} training records overlap with {facts['evaluation_items_found']} of "
        f"{facts['evaluation_items']} evaluation items"
    )
    if action is Action.refuse:
        shown = "; ".join(f"{one['training']} and {one['evaluation']}: '{one['words']}'" for one in facts["overlaps"])
        raise DataError(what, shown, "leave these records out (action: drop), or take another evaluation set")
    return Transformed(list(records), facts=facts, warnings=[what])
