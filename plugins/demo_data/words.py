"""Which of three words belongs to a category?

Training and held-out items draw on disjoint words: about a third of each category's words are never seen in training,
neither as an answer nor as an alternative, in any order. So a gain on the held-out part is not recall.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

CATEGORIES = {
    "animal": "tiger horse rabbit monkey goat sheep camel lion wolf bear fox deer mouse pig cow dog cat duck frog snake "
    "zebra whale dolphin donkey turtle squirrel elephant giraffe",
    "fruit": "apple banana mango grape peach pear plum cherry lemon orange melon kiwi papaya strawberry pineapple "
    "apricot blueberry coconut fig lime raspberry watermelon date tangerine",
    "tool": "hammer saw drill wrench axe shovel screwdriver pliers chisel rake spade ladder file hoe crowbar trowel "
    "clamp sander mallet pickaxe",
    "color": "red blue green yellow purple pink brown black white gray violet turquoise crimson beige maroon indigo "
    "teal magenta",
    "vehicle": "car bus truck train bicycle boat ship tram taxi van scooter motorcycle airplane helicopter tractor "
    "submarine ferry canoe ambulance yacht",
    "country": "France Japan Brazil Egypt Canada Spain India Kenya Norway Peru China Greece Mexico Italy Poland Chile "
    "Cuba Sweden Turkey Vietnam Portugal Ghana Nepal Finland",
    "job": "teacher doctor nurse farmer baker pilot lawyer plumber chef tailor dentist carpenter butcher waiter "
    "engineer painter barber cashier librarian electrician",
    "instrument": "piano guitar violin drum flute trumpet cello harp clarinet saxophone banjo trombone accordion "
    "harmonica tuba ukulele oboe organ",
}

SIZES = {"sft": 160, "preference": 480, "prompts": 320, "heldout": 100}
"""Rows of each file."""

SYSTEM = 'Choose one word. Begin with "The answer is:"'


def _answer(word: str) -> str:
    return f"The answer is: {word}."


def write(folder: Path, seed: int) -> None:
    """Write sft.jsonl, preference.jsonl, prompts.jsonl and heldout.jsonl into `folder`."""
    rng = random.Random(f"words:{seed}")
    known: dict[str, list[str]] = {}
    unseen: dict[str, list[str]] = {}
    for category, text in CATEGORIES.items():
        words = text.split()
        rng.shuffle(words)
        cut = len(words) * 2 // 3
        known[category], unseen[category] = words[:cut], words[cut:]
    for name, count in SIZES.items():
        rows = [_row(name, rng, unseen if name == "heldout" else known) for _ in range(count)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _row(name: str, rng: random.Random, words: dict[str, list[str]]) -> dict[str, object]:
    categories = rng.sample(sorted(words), 3)
    options = [rng.choice(words[category]) for category in categories]
    place = rng.randrange(3)
    article = "an" if categories[place][0] in "aeiou" else "a"
    question = f"Which of these is {article} {categories[place]}: {options[0]}, {options[1]}, or {options[2]}?"
    row: dict[str, object] = {
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
    }
    wrong = rng.choice([option for index, option in enumerate(options) if index != place])
    if name == "sft":
        return {**row, "completion": _answer(options[place])}
    if name == "preference":
        return {**row, "chosen": _answer(options[place]), "rejected": _answer(wrong)}
    return {**row, "answer": _answer(options[place])}
