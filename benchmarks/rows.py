"""Rows for those who bring none: random English-like text from a fixed seed, lengths as in instruction data sets.

Torch-free. Deciles of characters were taken from public Alpaca-like demonstrations and multi-turn preference pairs.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

DATA_VARIABLE = "PREFTUNE_BENCH_DATA"
"""File or folder of rows; a folder is searched for the names in FILES."""
FILES = {"sft": "alpaca_en_demo.json", "rloo": "alpaca_en_demo.json", "dpo": "dpo_en_demo.json"}
COUNT = 1000

_DECILES = {
    "instruction": (20, 40, 47, 54, 61, 68, 76, 89, 107, 137, 250),
    "output": (10, 42, 77, 145, 265, 465, 697, 1067, 1388, 1728, 2500),
    "dialogue": (60, 202, 547, 860, 1127, 1480, 1854, 2124, 2396, 2827, 4000),
    "reply": (30, 95, 240, 470, 740, 1080, 1650, 2200, 2900, 3800, 6000),
}
_WORDS = (
    "a about after all also and any as at back be because but by can come could day do even find first for from "
    "get give go good have he her here him his how if in into it its just know like look make man many me more my "
    "new no not now of on one only or other our out over people say see she so some take than that the their them "
    "then there these they thing think this time to two up use very want water way we well what when which who "
    "will with word work world would write year you your number light sound place story question answer example "
    "language system"
).split()


def rows_file(task: str, asked: str | None, folder: Path) -> tuple[Path, str]:
    """(file of rows, a word on where they come from): --data, the environment variable, else generated rows."""
    named = asked or os.environ.get(DATA_VARIABLE)
    if named:
        path = Path(named).expanduser()
        path = path / FILES[task] if path.is_dir() else path
        return path.resolve(), path.name
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate(task)), encoding="utf-8")
    return path, f"{COUNT} generated rows"


def instructions(asked: str | None, count: int) -> tuple[list[dict[str, str]], str]:
    """(rows of an instruction and its output, a word on where they come from): at most `count` of a JSON file in the
    Alpaca form, the input joined to its instruction; without one as many generated rows."""
    if not asked:
        return generate("sft", count), f"{count} generated rows"
    found = json.loads(Path(asked).expanduser().read_text(encoding="utf-8"))[:count]
    rows = [
        {
            "instruction": "\n".join(filter(None, (row["instruction"], row.get("input")))),
            "input": "",
            "output": row["output"],
        }
        for row in found
    ]
    return rows, f"{len(rows)} rows of {Path(asked).name}"


def generate(task: str, count: int = COUNT, seed: int = 0) -> list[dict[str, str]]:
    """Rows in the Alpaca form, or preference rows for dpo; the same for the same arguments."""
    rng = random.Random(f"{task}:{seed}")
    if task == "dpo":
        return [
            {"prompt": _text(rng, "dialogue"), "chosen": _text(rng, "reply"), "rejected": _text(rng, "reply")}
            for _ in range(count)
        ]
    return [
        {"instruction": _text(rng, "instruction"), "input": "", "output": _text(rng, "output")} for _ in range(count)
    ]


def _text(rng: random.Random, kind: str) -> str:
    """Words up to a length drawn from the deciles, linear in between."""
    deciles = _DECILES[kind]
    place = rng.random() * (len(deciles) - 1)
    low = int(place)
    wanted = deciles[low] + (place - low) * (deciles[low + 1] - deciles[low])
    words = [rng.choice(_WORDS)]
    length = len(words[0])
    while length < wanted:
        words.append(rng.choice(_WORDS))
        length += 1 + len(words[-1])
    return " ".join(words).capitalize() + "."
