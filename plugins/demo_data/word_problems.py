"""Short problems of one step: somebody gets some more, or gives some away.

No two numbers of a held-out problem stand together in a training problem, in either order or operation. The form of
the answers is fixed ("6 + 2 = 8. The answer: 8 books.", or its last sentence), not what a chat model would say by
itself.
"""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

NAMES = "Tom Anna Ben Lucy Sam Mia Jack Emma Leo Rosa".split()
THINGS = "pens apples books coins shells cards stamps buttons marbles stickers".split()
NUMBERS = range(1, 15)
HELDOUT = 1 / 3


def write(folder: Path, seed: int) -> None:
    """Write sft.jsonl, prompts.jsonl and heldout.jsonl into `folder`: of each two numbers a sum and a difference. The
    seed draws what is held out, names, things and order."""
    _write_files(folder, seed, worked=False)


def write_worked(folder: Path, seed: int) -> None:
    """The same problems, with the working in the answer."""
    _write_files(folder, seed, worked=True)


def _write_files(folder: Path, seed: int, worked: bool) -> None:
    rng = random.Random(f"word problems:{seed}")
    pairs = list(combinations(NUMBERS, 2))
    rng.shuffle(pairs)
    held = round(HELDOUT * len(pairs))
    for part, numbers in (("heldout", pairs[:held]), ("train", pairs[held:])):
        rows = [row for two in numbers for row in (_more(rng, two, worked), _less(rng, two, worked))]
        rng.shuffle(rows)
        if part == "heldout":
            _write(folder / "heldout.jsonl", rows)
        else:
            _write(folder / "sft.jsonl", rows)
            _write(folder / "prompts.jsonl", [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows])


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _more(rng: random.Random, numbers: tuple[int, int], worked: bool) -> dict[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    first, second = rng.sample(numbers, 2)
    working = f"{first} + {second} = {first + second}. " if worked else ""
    return _row(f"{name} has {_some(first, thing)} and gets {second} more.", name, thing, working, first + second)


def _less(rng: random.Random, numbers: tuple[int, int], worked: bool) -> dict[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    less, more = numbers
    working = f"{more} - {less} = {more - less}. " if worked else ""
    return _row(f"{name} has {more} {thing} and gives away {less} of them.", name, thing, working, more - less)


def _some(number: int, thing: str) -> str:
    return f"{number} {thing if number != 1 else thing[:-1]}"


def _row(story: str, name: str, thing: str, working: str, result: int) -> dict[str, str]:
    return {
        "prompt": f"{story} How many {thing} does {name} have now?",
        "completion": f"{working}The answer: {_some(result, thing)}.",
        "answer": str(result),
    }
