"""Back-translation: what is refused, what the command writes and resumes, what records are made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.api import ConfigError, Message, Record, TransformContext
from core.config.typed import typed_config
from core.planning.named_data import dataset_for
from core.testing import command
from core.training.parts import Parts
from plugins.augment import TranslatedConfig
from plugins.augment.faults import fault
from plugins.augment.translated import build


@pytest.mark.parametrize(
    ("text", "new", "why"),
    [
        ("Add 1,200 and 3.5 now.", "Now sum 3.5 and 1200.", ""),
        ("Is it 12?", "Is it 21?", "numbers differ"),
        ("Is it twelve?", "Is it 12?", "numbers differ"),
        ("Dear {name}, see https://a.b/c", "Dear friend, look at https://a.b/c", "placeholders differ"),
        ("Dear {name}, come in", "Do enter, dear {name}", ""),
        ("Use <b> and %s", "Take <b> and %d", "placeholders differ"),
        ("Where is it?", "where is it", "equal to the original"),
        ("Where is it?", "It stands there.", "question mark differs"),
        ("Where is it?", "The translation is: where?", "speaks of the translation"),
        ("Translate this word", "Make a translation of this word", ""),
        ("Where is it?", "Is it where one would look for it first of all?", "length"),
    ],
)
def test_faults(text, new, why):
    assert fault(text, "tout autre chose", new, 2.0) == why


def test_a_text_that_stayed_as_it_was_is_not_translated():
    assert fault("Where is it?", "Where is it", "Where might it be?", 2.0) == "not translated"


ASKED = [f"Name the colour of fruit {number}" for number in range(9)]


@pytest.fixture
def back_translate(tiny_chat, tmp_path, planted, monkeypatch):
    """Runs the command on nine records, one of them twice and one held out, with a planted engine."""
    rows = [{"prompt": text, "completion": "red"} for text in [*ASKED[:8], ASKED[0]]]
    data = tmp_path / "data"
    data.mkdir()
    (data / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "heldout.jsonl").write_text(json.dumps({"prompt": ASKED[8], "completion": "red"}) + "\n")

    def run(write, *words: str):
        engines = []

        def engine(self):
            if not engines:
                engines.append(planted(self.models.codec, write))
            return engines[0]

        monkeypatch.setattr(Parts, "engine", engine)
        outcome = command(
            "back-translate", f"data.path={data}", f"model.source={tiny_chat}", "rollout=transformers",
            "runtime.dtype=fp32", "model.max_length=400", f"runs_dir={tmp_path / 'runs'}", "--out",
            str(tmp_path / "made.jsonl"), "--max-new-tokens", "60", "--batch", "3", *words,
        )  # fmt: skip
        return outcome, sum(engine.prompts for engine in engines)

    return run


def told(asked: str) -> str:
    """The text in a request."""
    return asked.rpartition("\n\n")[2].partition("<|im_end|>")[0]


def french(asked: str) -> tuple[str, bool]:
    """A model that translates well, but for fruits 1 (another number), 2 (cut off) and 3 (as it was)."""
    text = told(asked)
    if "into French" in asked:
        return text.replace("Name the colour of fruit", "Nommez la couleur du fruit"), not text.endswith("2")
    number = text.rpartition(" ")[2]
    said = {"1": "What colour has fruit 7", "3": f"Name the colour of fruit {number}."}
    return said.get(number, f"What colour has fruit {number}"), True


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_writes_what_the_transform_adds(back_translate, tmp_path):
    outcome, _ = back_translate(french)
    assert "5 of 8 translations are taken" in outcome.assert_ok().out
    rows = read(tmp_path / "made.jsonl")
    assert [row["original"] for row in rows] == ASKED[:8]  # nothing held out, nothing twice
    assert [row["refused"] for row in rows[:5]] == ["", "numbers differ", "cut off", "equal to the original", ""]
    assert rows[0] | {"model": ""} == {
        "of": "prompt", "original": ASKED[0], "text": "What colour has fruit 0", "refused": "", "pivot": "French",
        "in_pivot": "Nommez la couleur du fruit 0", "model": "", "file": "sft.jsonl", "line": 1,
    }  # fmt: skip
    lineage = json.loads((tmp_path / "made.lineage.json").read_text())
    assert (lineage["texts"], lineage["translations"], lineage["taken"]) == (8, 8, 5)
    assert lineage["refused"] == {"numbers differ": 1, "cut off": 1, "equal to the original": 1}
    transforms = f"data.transforms=[{{name: augment_translated, file: {tmp_path / 'made.jsonl'}}}]"
    cfg, registry, _ = typed_config(["stage=sft", f"data.path={tmp_path / 'data'}", transforms])
    dataset = dataset_for(cfg, "sft", registry)
    added = dataset.train[9:]
    assert [record.prompt[0].content[-1] for record in added] == [*"04567", "0"]
    assert {record.completion for record in added} == {"red"}
    assert added[0].meta["augmented"] == "back-translation" and added[0].meta["pivot"] == "French"
    assert [record.prompt[0].content for record in dataset.heldout] == [ASKED[8]]
    [step] = dataset.info.transforms
    assert step.facts == {"translations": 8, "refused": 3, "without_record": 0}


def test_an_interrupted_command_goes_on_and_repeats_nothing(back_translate, tmp_path):
    def write(asked: str):
        if write.left == 0:
            raise KeyboardInterrupt
        write.left -= 1
        return french(asked)

    write.left = 8  # a batch of 3 asks 6 times, or 5 where one is cut off
    outcome, _ = back_translate(write)
    assert outcome.code == 130 and not (tmp_path / "made.jsonl").exists()
    write.left = -1
    outcome, prompts = back_translate(write)
    assert prompts == 2 * 5 and "3 of 8 examples are taken" in outcome.assert_ok().out
    whole = (tmp_path / "made.jsonl").read_text()
    outcome, prompts = back_translate(write, "reuse=false")
    assert prompts == 2 * 8 - 1 and (tmp_path / "made.jsonl").read_text() == whole
    _, prompts = back_translate(write, "--pivot", "French ")
    assert prompts > 0


def test_copies_that_are_alike_are_taken_once(back_translate, tmp_path):
    back_translate(french, "--copies", "2", "--temperature", "1", "data.limit=1")[0].assert_ok()
    assert [row["refused"] for row in read(tmp_path / "made.jsonl")] == ["", "repeated"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--copies", "2"], "greedy translations are all alike"),
        (["--share", "0"], "'--share' must be in (0, 1]"),
        (["--forward", "Translate"], "'--forward' must be a text with {text}"),
        (["--of", "text"], "no record has a text to translate"),
        (["stage=cft", "pipeline.stages=[sft,cft]"], "from what sft makes"),
        (["model.max_length=62"], "8 too long"),
    ],
)
def test_what_cannot_work_is_said(back_translate, words, says):
    outcome, prompts = back_translate(french, *words)
    assert prompts == 0 and says in outcome.out + outcome.err
    assert outcome.code == (0 if "too long" in says else 2), outcome.err


def test_the_part_that_was_translated_is_the_one_that_is_put_in(tmp_path):
    def row(of: str, original: str, text: str) -> dict:
        return {"of": of, "original": original, "text": text, "refused": "", "pivot": "French", "model": "m"}

    file = tmp_path / "made.jsonl"
    rows = [row("completion", "yes", "indeed"), row("text", "raw", "plain"), row("prompt", "no such", "x")]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    asked = (Message("system", "yes"), Message("user", "yes"))
    records = [Record(prompt=asked, completion="yes"), Record(text="raw")]
    outcome = build(TranslatedConfig(file=str(file)))(records, TransformContext([], 0))
    assert [(one.prompt, one.completion, one.text) for one in outcome.added] == [
        (asked, "indeed", None), ((), None, "plain"),
    ]  # fmt: skip
    assert outcome.facts["without_record"] == 1


@pytest.mark.parametrize("text", ["", '{"original": "a"}\n', '{"of": "answer", "original": "a"}\n'])
def test_files_that_hold_no_translations(tmp_path, text):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="no translations"):
        build(TranslatedConfig(file=str(tmp_path / "bad.jsonl")))


@pytest.mark.slow
def test_the_135m_model_translates_four_rows(real_model, tmp_path):
    asked = [
        "What is the capital of France?", "Name three animals that live in the sea.",
        "How many days are there in 2 weeks?", "Why is the sky blue?",
    ]  # fmt: skip
    rows = [{"prompt": text, "completion": "yes"} for text in asked]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command(
        "back-translate", f"data.path={tmp_path / 'rows.jsonl'}", f"model.source={real_model}", "data.heldout_frac=0",
        "rollout=transformers", "runtime.dtype=fp32", f"runs_dir={tmp_path / 'runs'}", "--out",
        str(tmp_path / "made.jsonl"), "--max-new-tokens", "48",
    ).assert_ok()  # fmt: skip
    made = read(tmp_path / "made.jsonl")
    assert [row["original"] for row in made] == asked and all(row["in_pivot"] for row in made)
    lineage = json.loads((tmp_path / "made.lineage.json").read_text())
    assert lineage["taken"] + sum(lineage["refused"].values()) == 4 and lineage["engine"] == "transformers"
    assert any(row["in_pivot"].lower() != row["original"].lower() for row in made)
