"""What was probably meant: the nearest known name for a word that is none. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

ALIKE = 0.6
"""Least likeness (0..1, difflib's ratio) of a name that is proposed."""
STRONG = 0.8
"""Likeness of one typing error in a word of five letters or more."""


def folded(word: str) -> str:
    """The word as it is compared: neither case nor the kind of dash matters."""
    return word.casefold().replace("-", "_")


def nearest(word: str, known: Iterable[str], least: float = ALIKE) -> str:
    """The known name that looks most like `word`; empty where none does. Never `word` itself: that was typed."""
    names: dict[str, str] = {}
    for name in known:
        if name != word:
            names.setdefault(folded(name), name)
    if folded(word) in names:
        return names[folded(word)]
    found = difflib.get_close_matches(folded(word), names, n=1, cutoff=least)
    return names[found[0]] if found else ""


def question(names: Sequence[str]) -> str:
    """`. Did you mean 'x' or 'y'?`, to stand behind what is wrong; empty where there is no name."""
    return f". Did you mean {' or '.join(map(repr, names))}?" if names else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question for the nearest known name; empty where nothing is near."""
    near = nearest(word, known)
    return question([near] if near else [])


def mend_of(word: str, known: Iterable[str], label: str) -> str:
    """`did you mean 'x'? <label>: x, y`, as the way to mend."""
    names = sorted(known)
    near = nearest(word, names)
    return (f"did you mean '{near}'? " if near else "") + f"{label}: {', '.join(names)}"
