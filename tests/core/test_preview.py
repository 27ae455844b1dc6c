"""The preview shows the examples that training takes, token by token, and needs no weights."""

from __future__ import annotations

import re

import pytest

from core.__main__ import main
from core.commands.preview.found import histogram
from core.testing.tiny import tiny_model, tiny_pairs, tiny_tokenizer
from core.tokens.heatmap import coloured, marked, strengths, to_html, token_texts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, and a model that has a tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("preview")
    tiny_tokenizer().save_pretrained(folder / "model")
    tiny_pairs(folder / "pairs.jsonl", count=20)
    return folder


def settings(place, *more: str) -> list[str]:
    return ["preview", "model=custom", f"model.source={place}/model", f"data.path={place}/pairs.jsonl",
            f"runs_dir={place}/runs", *more]  # fmt: skip


def test_a_demonstration_in_the_terminal_and_as_a_page(place, capsys):
    page = place / "page.html"
    assert main(settings(place, "--rows", "2", "--html", str(page))) == 0
    shown = capsys.readouterr().out
    assert re.search(r"⏎<\|im_start\|>assistant⏎\[\[\w+<\|im_end\|>\]\] \(\d+ of \d+ tokens trained\)", shown)
    assert "pairs.jsonl" in shown and "one epoch" in shown
    html = page.read_text()
    assert html.count('class="heat"') == 2
    assert re.search(r'<i class="up" style="--w:1.00" title="id 2, weight 1">&lt;\|im_end\|&gt;</i>', html)
    assert "http://" not in html and "https://" not in html and "<script" not in html
    assert not (place / "runs").exists(), "a preview leaves no run behind"


def test_both_sides_of_a_pair_and_a_bare_prompt(place, capsys):
    assert main(settings(place, "stage=reward", "--rows", "1")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"chosen .*\[\[\w+<\|im_end\|>\]\]", shown) and "[[-1|" in shown
    assert main(settings(place, "stage=rlhf", "algorithm=grpo", "reward=exact", "rollout=transformers")) == 0
    assert re.search(r"\(prompt, \d+ tokens\)", capsys.readouterr().out)


def test_what_is_too_long_is_counted(place, capsys):
    assert main(settings(place, "model.max_length=31")) == 0
    assert re.search(r"refused: \d+ × more than model.max_length=31", capsys.readouterr().out)


def test_a_run_asks_for_more_than_a_tokenizer(place, capsys):
    assert main(settings(place, "stage=sft", "dry_run=true")[1:]) == 2
    assert "config.json" in capsys.readouterr().err and not (place / "runs").exists()


@pytest.mark.parametrize("wrong", [["--rows", "many"], ["--pages"], ["--sample", "0"]])
def test_wrong_flags_are_errors_of_the_user(place, capsys, wrong):
    assert main(settings(place, *wrong)) == 2
    assert "error: preview: " in capsys.readouterr().err


def test_making_the_examples_counts_in_the_time(place, capsys, monkeypatch):
    """A large file of which few steps are made takes minutes before the first one."""
    tiny_model(place / "whole")
    words = settings(place, f"model.source={place}/whole", "stage=sft", "stage.max_steps=1", "dry_run=true")[1:]
    assert main(words) == 0
    assert "< 1 min" in capsys.readouterr().out
    monkeypatch.setattr("core.commands.preview.estimate._PREPARED", 1.0)
    assert main(words) == 0
    assert re.search(r"\b[3-9] min on", capsys.readouterr().out)


def test_token_texts_join_to_the_row():
    tokenizer = tiny_tokenizer()
    text = "naïve ☕ one\n two 漢字"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_marks_and_shades():
    texts, weights = ["a", "b", "c", "<d>", "\n"], [0.0, 1.0, 1.0, 0.5, -2.0]
    assert marked(texts, weights) == "a[[bc]][[0.5|<d>]][[-2|⏎]]"
    assert strengths(weights) == [0.0, 0.5, 0.5, 0.25, -1.0]
    assert strengths([3.0, -1.0], scale=2.0) == [1.0, -0.5]
    html = to_html(texts, weights, [1, 2, 3, 4, 5])
    assert "&lt;d&gt;" in html and 'class="down" style="--w:1.00" title="id 5, weight -2"' in html
    text = coloured(texts, weights)
    assert text.plain == "abc<d>⏎" and str(text.spans[0].style) == "dim"


def test_histogram_counts_everything_once():
    lengths = [3, 3, 4, 9, 30, 100]
    bars = histogram(lengths, 5)
    assert sum(count for *_, count in bars) == len(lengths) and bars[0][0] == 3 and bars[-1][1] >= 100
    for low, high, count in bars:
        assert count == sum(low <= length <= high for length in lengths)
    assert histogram([]) == [] and histogram([5]) == [(5, 5, 1)]
