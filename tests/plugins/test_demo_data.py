"""The embedded data: what is held out is not seen in training, and the answers are right."""

import json
import re
from pathlib import Path

import pytest

from plugins.demo_data import word_problems, words


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def made(tmp_path: Path, write, seed: int) -> Path:
    folder = tmp_path / f"{write.__module__}-{seed}"
    folder.mkdir(parents=True)
    write(folder, seed)
    return folder


def numbers(row: dict) -> tuple[int, ...]:
    return tuple(sorted(map(int, re.findall(r"\d+", row["prompt"]))))


@pytest.mark.parametrize("seed", range(5))
def test_word_problems_are_right_and_held_out_numbers_are_not_trained(tmp_path: Path, seed: int) -> None:
    folder = made(tmp_path, word_problems.write, seed)
    train, heldout = rows(folder, "sft"), rows(folder, "heldout")
    assert (len(train), len(heldout)) == (122, 60)
    assert not {numbers(row) for row in train} & {numbers(row) for row in heldout}
    for row in train + heldout:
        less, more = numbers(row)
        result = less + more if " more. " in row["prompt"] else more - less
        thing = re.search(r"How many (\w+)s does", row["prompt"])[1]
        assert row["answer"] == str(result)
        assert row["completion"] == f"The answer: {result} {thing}{'s' * (result != 1)}."
        assert f" 1 {thing}s" not in row["prompt"]
    worked = made(tmp_path / "worked", word_problems.write_worked, seed)
    for name, plain in (("sft", train), ("heldout", heldout)):
        for row, other in zip(rows(worked, name), plain, strict=True):
            working, completion = row.pop("completion").split(". ", 1)
            first, sign, second, _, result = working.split()
            assert (int(first) + int(second) if sign == "+" else int(first) - int(second)) == int(result)
            assert row | {"completion": completion} == other
    prompts = rows(folder, "prompts")
    assert prompts == [{"prompt": row["prompt"], "answer": row["answer"]} for row in train]


@pytest.mark.parametrize("write", [words.write, word_problems.write])
def test_the_seed_decides(tmp_path: Path, write) -> None:
    def text(seed: int, turn: str) -> str:
        return (made(tmp_path / turn, write, seed) / "heldout.jsonl").read_text()

    assert text(1, "a") == text(1, "b") != text(2, "c")
