"""Which of three words belongs to a category?

Training and held-out items draw on disjoint words: a third of each category's words is never seen in training, neither
as an answer nor as an alternative, in any order. So a gain on the held-out part is not recall.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

CATEGORIES = {
    "animal": "tiger horse rabbit monkey goat sheep camel lion wolf bear fox deer pig cow dog cat duck frog snake "
    "zebra whale dolphin donkey turtle squirrel elephant giraffe",
    "fruit": "apple banana mango grape pear melon papaya strawberry pineapple apricot blueberry coconut fig raspberry "
    "watermelon pomegranate blackberry grapefruit cranberry nectarine",
    "tool": "hammer saw drill wrench axe shovel screwdriver pliers chisel rake spade ladder hoe crowbar trowel sander "
    "mallet pickaxe",
    "color": "red blue green yellow purple pink brown black white gray turquoise crimson beige maroon indigo teal "
    "magenta scarlet",
    "vehicle": "car bus truck train bicycle boat ship tram taxi van scooter motorcycle airplane helicopter tractor "
    "submarine ferry canoe ambulance yacht",
    "country": "France Japan Brazil Egypt Canada Spain India Kenya Norway Peru Greece Mexico Italy Poland Chile Cuba "
    "Sweden Vietnam Portugal Ghana Nepal Finland",
    "job": "teacher doctor nurse farmer baker pilot lawyer plumber chef tailor dentist carpenter butcher waiter "
    "engineer painter barber cashier librarian electrician",
    "instrument": "piano guitar violin drum flute trumpet cello harp clarinet saxophone banjo trombone accordion "
    "harmonica tuba ukulele oboe",
}

SIZES = {"sft": 48, "preference": 480, "prompts": 160, "heldout": 100}
"""Rows of each file; held-out rows serve every stage: answers to check, pairs to rank, replies to predict.

As where people write them, demonstrations are few and comparisons many: what a reward model learns of the latter is
more than the former teach the policy.
"""

SYSTEM = 'Choose one word. Begin with "The answer is:"'


def _a(word: str) -> str:
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def _reply(word: str) -> str:
    return f"The answer is: {word}."


def write(folder: Path, seed: int) -> None:
    """Write sft.jsonl, preference.jsonl, prompts.jsonl and heldout.jsonl into `folder`.

    Within a file no item comes twice, in whatever order its words stand. The split of the words is the same for every
    seed.
    """
    order = random.Random("words")
    known: dict[str, list[str]] = {}
    unseen: dict[str, list[str]] = {}
    for category, text in CATEGORIES.items():
        words = text.split()
        order.shuffle(words)
        cut = len(words) * 2 // 3
        known[category], unseen[category] = words[:cut], words[cut:]
    for name, count in SIZES.items():
        rng = random.Random(f"{name}:{seed}")
        words_of = unseen if name == "heldout" else known
        taken: set[tuple[str, ...]] = set()
        rows: list[dict[str, object]] = []
        while len(rows) < count:
            row, item = _row(name, rng, words_of)
            if item not in taken:
                taken.add(item)
                rows.append(row)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _row(name: str, rng: random.Random, words: dict[str, list[str]]) -> tuple[dict[str, object], tuple[str, ...]]:
    """A row of the file `name`, and what makes it the item that it is."""
    categories = rng.sample(sorted(words), 3)
    options = [rng.choice(words[category]) for category in categories]
    category, right = categories[0], options[0]
    shown = rng.sample(options, 3)
    question = f"Which of these is {_a(category)}: {shown[0]}, {shown[1]} or {shown[2]}?"
    row: dict[str, object] = {
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
    }
    if name == "sft":
        row["completion"] = _reply(right)
    if name in ("preference", "heldout"):
        others = [word for word in words[category] if word != right]
        row |= {"chosen": _reply(right), "rejected": _rejected(rng, category, right, options[1:], others)}
    if name in ("prompts", "heldout"):
        row["answer"] = _reply(right)
    return row, (category, *sorted(options))


def _rejected(rng: random.Random, category: str, right: str, wrong: list[str], others: list[str]) -> str:
    """A worse reply of a kind that small models give: mostly a wrong word, one of the category that was not offered (a
    reward model that never saw one would prize it above the right word), or the right word in another form.

    wrong: the other words of the question. others: words of the category that are not in it.
    """
    kind = rng.random()
    if kind < 0.45:
        return _reply(rng.choice(wrong))
    if kind < 0.7:
        return _reply(rng.choice(others))
    other = rng.choice(wrong)
    return rng.choice(
        [
            _reply(category),
            f"{right[0].upper()}{right[1:]} is {_a(category)}.",
            f'The answer is: "The answer is: {right}"',
            f"The answer is: {right} or {other}.",
            f"1. The answer is: {right}.",
            f"I think the right word is {right}, because {other} is not {_a(category)}.",
            f"The answer is: {right}, as {other} has another meaning in English and is often used in other ways.",
            f"{right}",
            f"The answer is: {right}.\n\nThe word {other} is not {_a(category)}.",
            f"The answer is a word: {right}.",
        ]
    )
