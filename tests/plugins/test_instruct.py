"""The stage instruct on a tiny model: what it trains, its phrasings, its held-out loss by source."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from core.api import ConfigError, DataError, Message, Record
from core.training.evaluate import headline
from plugins.instruct import InstructConfig
from plugins.instruct.phrasings import Phrasebook

DATA = Path(os.environ.get("PREFTUNE_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
MULTI = [
    {"messages": [
        {"role": "user", "content": f"one {i}"}, {"role": "assistant", "content": "two"},
        {"role": "user", "content": "after"}, {"role": "assistant", "content": "three"},
    ]}
    for i in range(12)
]  # fmt: skip
SINGLE = [{"prompt": f"Name the number after two {i}", "completion": "three"} for i in range(12)]


def write(folder: Path, **files: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def instruct(make_stage, tmp_path):
    folder = write(tmp_path / "data", talk=MULTI, tasks=SINGLE)

    def make(*words: str):
        return make_stage("stage=instruct", f"data.path={folder}", "stage.warmup_frac=0", *words)

    return make


def test_every_assistant_turn_is_trained_and_loss_is_told_by_source(instruct):
    stage = instruct("stage.lr=3e-3", "stage.max_steps=12", "stage.batch_size=4", "stage.neftune_alpha=5",
                     "stage.label_smoothing=0.05")  # fmt: skip
    codec = stage.run.codec
    kept = {
        example.source: codec.tokenizer.decode([t for t, w in zip(example.ids, example.weights, strict=True) if w])
        for example in stage.data.train
    }
    assert kept == {"talk": "two<|im_end|>three<|im_end|>", "tasks": "three<|im_end|>"}
    before = stage.evaluate(0).metrics
    stage.fit()
    after = stage.evaluate(12).metrics
    for source in ("talk", "tasks"):
        assert after[f"heldout_loss/{source}"] < 0.7 * before[f"heldout_loss/{source}"]
    masses = {"talk": 0.0, "tasks": 0.0}
    for example in stage.data.heldout:
        masses[example.source] += sum(example.weights)
    whole = sum(masses[s] * before[f"heldout_loss/{s}"] for s in masses) / sum(masses.values())
    assert before["heldout_loss"] == pytest.approx(whole, rel=1e-6)
    told = headline(stage.recorder.first, stage.recorder.last)["heldout_loss_by_source"]
    assert set(told) == {"talk", "tasks"}
    assert told["talk"]["before"] == pytest.approx(before["heldout_loss/talk"], rel=1e-5)
    assert told["talk"]["after"] == pytest.approx(after["heldout_loss/talk"], rel=1e-5)


def test_weights_of_roles_reach_the_loss(instruct):
    stage = instruct("stage.train_on=last", "stage.role_weights={user: 0.5}")
    talk = next(example for example in stage.data.train if example.source == "talk")
    texts = {
        weight: stage.run.codec.tokenizer.decode(
            [t for t, w in zip(talk.ids, talk.weights, strict=True) if w == weight]
        )
        for weight in (0.5, 1.0)
    }
    assert texts[1.0] == "three<|im_end|>" and texts[0.5].startswith("one ") and texts[0.5].endswith("after")


def test_noise_is_drawn_in_training_and_not_in_evaluation(instruct):
    stage = instruct("stage.neftune_alpha=50")
    (row, *_), *_ = stage.collect().updates
    one, two = (stage.loss(row).loss for _ in range(2))
    assert one.item() != two.item()
    first, again = (stage.evaluate().metrics for _ in range(2))
    assert first["heldout_loss"] == again["heldout_loss"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("label_smoothing", 1.0), ("neftune_alpha", -1.0), ("role_weights", {"robot": 1.0}),
     ("role_weights", {"user": -1}), ("options_frac", 1.5)],
)  # fmt: skip
def test_values_that_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        InstructConfig(**{field: value})


# ---- phrasings ---------------------------------------------------------------------------------------------------


def asked(index: int, **fields) -> Record:
    return Record(prompt=(Message("system", "s"), Message("user", f"Which is red {index}?")), completion="ruby",
                  **{"meta": {"extra": {"options": ["ruby", "grass"]}}, **fields})  # fmt: skip


def test_half_of_the_records_show_their_options():
    book = Phrasebook.read(["builtin"])
    made = [book.phrase(asked(i), 7, 0.5, {}) for i in range(2000)]
    shown = sum("grass" in record.prompt[-1].content for record in made)
    assert abs(shown - 1000) < 3 * math.sqrt(2000 * 0.25)
    assert all(record.completion == "ruby" and record.prompt[0].content == "s" for record in made)
    assert len({record.meta["phrasing"] for record in made}) == 7  # all but those that need a rationale
    assert made == [book.phrase(asked(i), 7, 0.5, {}) for i in range(2000)]
    assert made != [book.phrase(asked(i), 8, 0.5, {}) for i in range(2000)]


def test_a_rationale_is_used_where_there_is_one():
    book = Phrasebook.read(["builtin"])
    made = [book.phrase(asked(i, rationale="Rubies are.", answer="A"), 1, 0.0, {}) for i in range(200)]
    assert any(record.completion == "Rubies are.\n\nThe answer is A." for record in made)


def test_what_stays_as_it_is():
    book = Phrasebook.read(["builtin"])
    dialogue = Record(prompt=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")), completion="d")
    pair = Record(prompt=(Message("user", "a"),), chosen="b", rejected="c")
    called = Record(prompt=(Message("user", "a"),), completion="", calls=('{"name": "f", "arguments": {}}',))
    for record in (dialogue, pair, called):
        assert book.phrase(record, 1, 0.5, {}) is record


def test_templates_that_would_not_end_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    for jinja, said in (
        ("{{ 9 ** 9 ** 9 }} ||| x", "a power in line 1"),
        ("{{ 'a' * 99999999999 }} ||| x", "of memory"),
    ):
        path.write_text(json.dumps({"templates": [{"name": "bad", "jinja": jinja}]}))
        (phrasing,) = Phrasebook.read([str(path)]).phrasings
        with pytest.raises(ConfigError, match=f"the template 'bad' .*{said}") as caught:
            phrasing.render({})
        assert str(path) in str(caught.value)


def test_templates_run_in_a_sandbox(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("templates: [{name: bad, jinja: \"{{ ''.__class__.__mro__ }} ||| x\"}]")
    record = asked(0)
    assert Phrasebook.read([str(path)]).phrase(record, 1, 0.5, {}) is record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not plain YAML"), ("a: 1", "holds no `templates`"),
        ("templates: [{name: x}]", "no text under `jinja`"),
        ("templates: [{jinja: '{% if %}'}]", "not Jinja"), ("x: !!python/object/apply:os.getcwd []", "not plain YAML"),
        ("x: !Thing [1]", "not plain YAML"),
    ],
)  # fmt: skip
def test_files_that_are_no_phrasings(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Phrasebook.read([str(tmp_path / "t.yaml")])
    with pytest.raises(ConfigError, match="cannot be read"):
        Phrasebook.read([str(tmp_path / "none.yaml")])


@pytest.mark.skipif(not (DATA / "promptsource_templates").is_dir(), reason="the real data is not here")
def test_promptsource_files_are_read_as_they_are():
    counts = {path.name: Phrasebook.read([str(path)]) for path in (DATA / "promptsource_templates").glob("*.yaml")}
    assert len(counts) == 8 and sum(len(book.phrasings) for book in counts.values()) == 50
    row = {
        "choices": {"label": ["A", "B"], "text": ["bank", "library"]},
    }
    record = Record(prompt=(Message("user", "Where is money kept?"),), completion="A", meta={"extra": row})
    columns = {"prompt": "question", "completion": "answerKey"}
    made = [counts["commonsense_qa.yaml"].phrase(record, seed, 0.5, columns) for seed in range(60)]
    prompts = {record.prompt[-1].content for record in made if "phrasing" in record.meta}
    assert len(prompts) > 4 and any("Where is money kept?" in prompt for prompt in prompts)
    assert {"bank"} <= {record.completion for record in made}


def test_templates_of_the_stage(instruct):
    stage = instruct("stage.templates=[builtin]")
    train = [stage.run.codec.tokenizer.decode(example.ids) for example in stage.data.train]
    assert any("Task: Name the number" in text for text in train) and any("<|im_start|>user\nName" in t for t in train)
    assert all("Task: one" not in text for text in train)


def test_templates_that_fit_nothing_are_refused(instruct, tmp_path):
    (tmp_path / "t.yaml").write_text("templates: [{jinja: '{{ headline }} ||| {{ topic }}'}]")
    with pytest.raises(DataError, match="fits any") as error:
        instruct(f"stage.templates=[{tmp_path / 't.yaml'}]")
    assert "prompt" in error.value.mend


def test_the_key_goes_by_the_content_of_the_templates(make_stage, instruct, tmp_path):
    path = tmp_path / "t.yaml"
    keys = []
    for text in ("Q", "Q", "Question"):
        path.write_text(f"templates: [{{jinja: '{text}: {{{{ prompt }}}} ||| {{{{ completion }}}}'}}]")
        keys.append(instruct(f"stage.templates=[{path}]").run.key)
    assert keys[0] == keys[1] != keys[2]
