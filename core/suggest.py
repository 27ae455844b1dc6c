"""What was probably meant: the nearest known name for a word that is none. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that looks most like `word`; empty where none does. Never `word` itself: that was typed.

    cutoff: least likeness, 0 to 1.
    """
    others = [name for name in known if name != word]
    found = difflib.get_close_matches(word, others, n=1, cutoff=cutoff)
    return found[0] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`. Did you mean 'x'?`, to stand behind what is wrong; empty where nothing is near."""
    near = nearest(word, known)
    return f". Did you mean '{near}'?" if near else ""


def mend_of(word: str, known: Iterable[str], label: str) -> str:
    """`did you mean 'x'? <label>: x, y`, as the way to mend."""
    names = sorted(known)
    near = nearest(word, names)
    return (f"did you mean '{near}'? " if near else "") + f"{label}: {', '.join(names)}"
