"""What users write beside prompt and answer: switches, verdicts, earlier turns, contexts, ends, parts of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.dataset import load_dataset
from core.data.loading import Loaded, load_records
from core.data.records import Message, Record
from core.data.views import as_schema
from core.errors import DataError
from core.settings.data_schema import DataConfig


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Loaded:
    return load_records([write(tmp_path / "rows.jsonl", list(rows))], **options)


def one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Record:
    loaded = load(tmp_path, row, **options)
    assert not loaded.quarantined and len(loaded.records) == 1
    return loaded.records[0]


def said(record: Record) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.prompt]


# ---- whether a turn is trained --------------------------------------------------------------------------------------

NOT_TRAINED = [
    {"train": False}, {"trainable": 0}, {"loss": "false"}, {"loss": 0.0}, {"loss_mask": 0}, {"mask": True},
    {"masked": 1}, {"weight": 0}, {"loss_weight": 0.0}, {"training": "no"}, {"learn": False}, {"ignore": "yes"},
    {"include_in_loss": False},
    {"train": False, "weight": 0}, {"train": False, "mask": True},
]  # fmt: skip
TRAINED = [
    ({"train": True}, 1.0), ({"weight": 1}, 1.0), ({"weight": 0.25}, 0.25), ({"loss": 0.5}, 0.5),
    ({"mask": False}, None),
    ({"mask": 0}, None), ({"train": None}, None), ({"train": ""}, None), ({"name": "x"}, None),
]  # fmt: skip


@pytest.mark.parametrize("style", ["role", "from", "speaker"])
@pytest.mark.parametrize(("keys", "weight"), [*((keys, 0.0) for keys in NOT_TRAINED), *TRAINED], ids=json.dumps)
def test_switches_of_a_turn_weigh_it(tmp_path: Path, style: str, keys: dict[str, Any], weight: float | None) -> None:
    text = {"role": "content", "from": "value", "speaker": "text"}[style]
    turns = [
        {style: "user", text: "What?"}, {style: "assistant", text: "WRONG", **keys}, {style: "user", text: "Again."},
        {style: "assistant", text: "right"},
    ]  # fmt: skip
    record = one(tmp_path, {"utterances" if style == "speaker" else "conversations": turns})
    assert (record.prompt[1].content, record.prompt[1].weight, record.completion) == ("WRONG", weight, "right")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"train": "maybe"}, "train of a turn in messages is 'maybe', not true or false"),
        ({"weight": "heavy"}, "weight of a turn in messages is text, not a finite number"),
        ({"mask": [1, 0]}, "mask of a turn in messages is a list"),
        ({"train": True, "weight": 0}, "contradict each other"),
        ({"loss": False, "trainable": True}, "contradict each other"),
    ],
)
def test_switches_that_cannot_be_read_are_bad_rows_with_their_lines(
    tmp_path: Path, keys: dict[str, Any], reason: str
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **keys}]}
    [row] = load(tmp_path, good, bad, good, max_bad_frac=1).quarantined
    assert row.line == 2 and reason in row.reason


def test_a_switch_of_the_whole_row(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b"}
    assert one(tmp_path, {**row, "train": False}).weight == 0.0
    assert one(tmp_path, {**row, "trainable": "true"}).weight is None
    assert one(tmp_path, {**row, "is_trainable": 0, "weight": 2}).weight == 0.0
    spoken = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    record = one(tmp_path, {"messages": spoken, "train": "no"})
    assert [turn.weight for turn in record.turns()] == [None, 0.0, None, 0.0]


def test_a_weight_of_the_chosen_turn_is_kept(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "a"}
    sides = [
        [asked, {"role": "assistant", "content": text, **keys}] for text, keys in (("b", {"weight": 0.5}), ("c", {}))
    ]
    record = one(tmp_path, dict(zip(("chosen", "rejected"), sides, strict=True)))
    assert (record.chosen, record.rejected, record.weight) == ("b", "c", 0.5)


# ---- verdicts -------------------------------------------------------------------------------------------------------

WORDS = [
    ("good", "bad"), ("Chosen", "Rejected"), ("thumbs_up", "thumbs-down"), ("👍", "👎"), ("TRUE", "FALSE"),
    ("yes", "no"),
    ("desirable", "undesirable"), ("positive", "negative"), ("correct", "incorrect"), (1, -1), ("1.0", "0.0"),
    (1.0, 0.0),
    ("accepted", "rejected"), (" up ", "down"), ("+", "-"), ("pass", "fail"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad"), WORDS, ids=str)
@pytest.mark.parametrize("column", ["label", "Label", "kto_tag", "desirable", "thumbs"])
def test_words_are_verdicts(tmp_path: Path, good: Any, bad: Any, column: str) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", column: [bad, good][i % 2]} for i in range(4)]
    records = load(tmp_path, *rows).records
    assert [record.label for record in records] == [False, True, False, True]
    assert [record.completion for record in as_schema(records, "sft")] == ["c1", "c3"]


UNREADABLE = [
    ("label", "greeting", "label 'greeting' is no verdict"), ("label", 3, "label is a number, not true or false"),
    ("score", {"a": 1}, "score is an object, not a finite number"), ("reward", "high", "not a finite number"),
    ("weight", "12 kg", "weight is text"), ("answer", ["x"], "answer is a list, not text or a number"),
    ("tools", "none", "tools holds text, not functions"), ("system", {"a": 1}, "system is an object"),
    ("history", "as before", "history is text, not a list of turns"), ("history", [3], "history holds a number"),
    ("context", 7, "context is a number"), ("documents", [{"id": 1}], "context holds an object without a text"),
    ("train", "sometimes", "trained 'sometimes' is no verdict"), ("rationale", 5, "rationale is a number"),
    ("thinking", ["a"], "reasoning is a list"), ("image", "a.png", "pictures, sound and video are not supported"),
    ("videos", ["a.mp4"], "pictures, sound and video"), ("input", ["a"], "input is a list"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "reason"), UNREADABLE, ids=lambda value: str(value)[:20])
def test_a_column_found_by_name_that_cannot_be_read_is_an_error(
    tmp_path: Path, column: str, value: Any, reason: str
) -> None:
    row = {"prompt": "a", "completion": "b", column: value}
    with pytest.raises(DataError, match="none of the 3 rows can be used") as error:
        load(tmp_path, row, row, row)
    assert "rows.jsonl:1: " in error.value.where and "rows.jsonl:3: " in error.value.where
    assert reason in error.value.where and "leaves a field out" in error.value.mend
    [bad] = load(tmp_path, {"prompt": "a", "completion": "b"}, row, max_bad_frac=0.5).quarantined
    assert bad.line == 2 and reason in bad.reason


def test_an_empty_name_leaves_a_field_out(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": "greeting"}
    loaded = load(tmp_path, row, columns={"label": ""})
    assert loaded.records[0].label is None and loaded.records[0].meta["extra"] == {"label": "greeting"}
    assert loaded.warnings == [] and loaded.unread.columns == {"label": 1}


def test_a_label_beside_a_class_is_no_verdict(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"text": "Where is my card?", "label": 11, "label_text": "card_arrival"})
    assert (loaded.dialect.name, loaded.records[0].label, loaded.records[0].completion) == (
        "classification", None, "card_arrival",
    )  # fmt: skip


# ---- turns before the question --------------------------------------------------------------------------------------

EARLIER = [("user", "Remember seven."), ("assistant", "I will.")]
HISTORIES = [
    [["Remember seven.", "I will."]],
    ["Remember seven.", "I will."],
    [{"role": "user", "content": "Remember seven."}, {"role": "assistant", "content": "I will."}],
    [{"from": "human", "value": "Remember seven."}, {"from": "gpt", "value": "I will."}],
    [{"user": "Remember seven.", "assistant": "I will."}],
    [{"question": "Remember seven.", "answer": "I will."}],
    json.dumps([["Remember seven.", "I will."]]),
    "Human: Remember seven.\n\nAssistant: I will.",
    [["Remember seven.", "I will."], ["", None]],
]


@pytest.mark.parametrize("history", HISTORIES, ids=range(len(HISTORIES)))
@pytest.mark.parametrize("column", ["history", "chat_history", "Conversation History"])
def test_earlier_turns_stand_before_the_question(tmp_path: Path, history: Any, column: str) -> None:
    asked = [("user", "Times 2?")]
    record = one(tmp_path, {"instruction": "Times 2?", "input": "", "output": "14", "system": "Sums.", column: history})
    assert said(record) == [("system", "Sums."), *EARLIER, *asked] and record.completion == "14"
    assert said(one(tmp_path, {"prompt": "Times 2?", "response": "14", column: history})) == EARLIER + asked
    pair = one(tmp_path, {"question": "Times 2?", "chosen": "14", "rejected": "7", column: history})
    assert said(pair) == EARLIER + asked and pair.chosen == "14"


def test_histories_that_say_nothing(tmp_path: Path) -> None:
    for history in ([], None, "", "[]", [["", ""]]):
        assert said(one(tmp_path, {"instruction": "a", "output": "b", "history": history})) == [("user", "a")]


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_in_a_turn_are_refused_and_their_marks_warned_of(tmp_path: Path) -> None:
    for key in ("images", "image", "video", "audio"):
        row = {
            "messages": [{"role": "user", "content": "<image>Hi", key: ["a"]}, {"role": "assistant", "content": "b"}]
        }
        with pytest.raises(DataError) as error:
            load(tmp_path, row)
        assert f"a turn in messages has '{key}': pictures, sound and video" in error.value.where
    part = {"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}
    with pytest.raises(DataError, match="none of the 1 rows"):
        load(tmp_path, {"messages": [part, {"role": "assistant", "content": "b"}]})
    rows = [{"prompt": f"<image>Hi {i}", "completion": "b"} for i in range(4)]
    [warning] = load_dataset(DataConfig(heldout_frac=0.0), write(tmp_path / "rows.jsonl", rows), "sft", 0).warnings
    assert "4 records name pictures (<image>) that the model does not see" in warning
    empty = {"prompt": "a", "completion": "b", "images": [], "image": None}
    assert one(tmp_path, empty).completion == "b"


# ---- what a question is about ---------------------------------------------------------------------------------------

CONTEXTS = [
    ("context", "The cat sleeps on shelf 3.", "The cat sleeps on shelf 3."),
    ("passage", "The cat sleeps.", "The cat sleeps."),
    ("documents", ["One is here.", "Two is there."], "One is here.\n\nTwo is there."),
    ("docs", [{"title": "Cat", "text": "It sleeps."}], "Cat\nIt sleeps."),
    ("retrieved_contexts", [{"page_content": "It sleeps.", "id": 3}], "It sleeps."),
    ("Context", {"title": ["Cat"], "sentences": [["It sleeps.", " Deeply."]]}, "Cat\nIt sleeps. Deeply."),
    ("context", [["Cat", ["It sleeps."]]], "Cat\nIt sleeps."),
    ("ctxs", [{"title": "Cat", "text": "A."}, {"title": "Dog", "text": "B."}], "Cat\nA.\n\nDog\nB."),
]


@pytest.mark.parametrize(("column", "value", "text"), CONTEXTS, ids=lambda value: str(value)[:16])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("question", "answer"), ("question", "response"), ("query", "output")]
)
def test_contexts_stand_before_their_question(
    tmp_path: Path, column: str, value: Any, text: str, prompt: str, completion: str
) -> None:
    record = one(tmp_path, {prompt: "Where does it sleep?", column: value, completion: "On shelf 3."})
    assert said(record) == [("user", f"{text}\n\nWhere does it sleep?")] and record.completion == "On shelf 3."
    pair = one(
        tmp_path, {prompt: [{"role": "user", "content": "Where?"}], column: value, "chosen": "a", "rejected": "b"}
    )
    assert said(pair) == [("user", f"{text}\n\nWhere?")]


def test_a_context_that_the_prompt_holds_is_not_said_twice(tmp_path: Path) -> None:
    context = "The cat sleeps on shelf 3."
    record = one(tmp_path, {"prompt": f"{context} Where?", "context": context, "completion": "There."})
    assert said(record) == [("user", f"{context} Where?")]
    choice = one(tmp_path, {"question": "Where?", "passage": context, "choices": ["here", "there"], "answer": 1})
    assert said(choice) == [("user", f"{context}\n\nWhere?\n\nA. here\nB. there")]


def test_an_input_beside_a_prompt(tmp_path: Path) -> None:
    record = one(tmp_path, {"prompt": "Translate.", "input": "Hallo Welt", "completion": "Hello world"})
    assert said(record) == [("user", "Translate.\n\nHallo Welt")]


# ---- thoughts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought", "analysis"])
def test_thoughts_of_a_turn_are_carried_under_any_name(tmp_path: Path, key: str) -> None:
    turns = [
        {"role": "user", "content": "1 + 1?", key: None}, {"role": "assistant", "content": "2", key: "One and one."},
        {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4", key: "Two and two."},
    ]  # fmt: skip
    record = one(tmp_path, {"messages": turns})
    assert (record.prompt[1].reasoning, record.reasoning, record.completion) == ("One and one.", "Two and two.", "4")


def test_a_thought_in_a_column(tmp_path: Path) -> None:
    record = one(tmp_path, {"question": "1 + 1?", "thinking": "One and one.", "response": "2"})
    assert (record.reasoning, record.completion) == ("One and one.", "2")


# ---- calls and their results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"sky": "sun"}, '{"sky": "sun"}'), ([{"town": "Köln"}], '[{"town": "Köln"}]'), ([1, 2], "[1, 2]"),
        (["a"], '["a"]'), (4, "4"), (True, "true"), ("plain", "plain"), ([{"type": "text", "text": "said"}], "said"),
        ({"type": "sun", "text": 3}, '{"type": "sun", "text": 3}'), ([], "[]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("style", ["role", "from"])
def test_what_a_tool_answers_may_be_any_json(tmp_path: Path, content: Any, text: str, style: str) -> None:
    key = "content" if style == "role" else "value"
    turns = [
        {style: "user", key: "Weather?"}, {style: "tool", key: content}, {style: "assistant", key: "Sun."},
    ]  # fmt: skip
    assert one(tmp_path, {"messages": turns}).prompt[1] == Message("tool", text)


def test_an_object_of_anyone_else_is_named(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": {"sky": "sun"}}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError) as error:
        load(tmp_path, row)
    assert "content in messages is an object, not text" in error.value.where


def calls_of(record: Record) -> list[Any]:
    return [json.loads(call) for turn in record.turns() for call in turn.calls]


CALLS = [
    {"name": "route", "arguments": {"start": "A", "end": "B"}},
    {"name": "weather", "arguments": {"city": "Bonn"}},
    {"name": "hotel", "arguments": {"city": "Bonn", "guests": {"adults": 2}}},
    {"name": "ping", "arguments": {}},
]
TOOLS = [
    {
        "name": call["name"],
        "parameters": {"type": "object", "properties": {name: {"type": "x"} for name in call["arguments"]}},
    }
    for call in CALLS
]


def test_calls_of_a_table_have_only_the_arguments_that_they_have(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Go"},
                      {"role": "assistant", "content": None, "tool_calls": [{"function": call}]}],
         "tools": [{"function": tool} for tool in TOOLS], "note": None}
        for call in CALLS
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    loaded = load_records([tmp_path / "rows.parquet"])
    assert [calls_of(record) for record in loaded.records] == [[call] for call in CALLS]
    offered = [json.loads(tool) for tool in loaded.records[0].tools]
    assert [tool["parameters"].get("properties", {}).keys() for tool in offered] == [
        call["arguments"].keys() for call in CALLS
    ]
    assert loaded.unread.columns == {} and loaded.warnings == []


def test_a_table_that_was_written_as_json_has_its_nulls_only_where_the_tool_knows_them(tmp_path: Path) -> None:
    names = {"start", "end", "city", "guests"}
    rows = []
    for call in CALLS:
        whole = {**dict.fromkeys(names), **call["arguments"]}
        message = {"role": "assistant", "content": "", "tool_calls": [{"function": {**call, "arguments": whole}}]}
        tools = [
            {**tool, "parameters": {"properties": {**dict.fromkeys(names), **tool["parameters"]["properties"]}}}
            for tool in TOOLS
        ]
        rows.append({"messages": [{"role": "user", "content": "Go"}, message], "tools": tools})
    loaded = load(tmp_path, *rows)
    assert [calls_of(record) for record in loaded.records] == [[call] for call in CALLS]
    own = {"name": "weather", "arguments": {"city": None}}
    row = {
        "messages": [{"role": "user", "content": "Go"}, {"role": "function_call", "content": json.dumps(own)}],
        "tools": TOOLS,
    }
    assert calls_of(one(tmp_path, row)) == [own]


def test_cells_that_json_does_not_have_are_text(tmp_path: Path) -> None:
    import datetime
    import decimal

    row = {
        "prompt": "a",
        "completion": "b",
        "when": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "raw": b"x",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [record] = load_records([tmp_path / "rows.parquet"]).records
    assert record.meta["extra"] == {"when": "2026-01-02", "price": "1.50", "raw": "x"}


# ---- parts of the data ----------------------------------------------------------------------------------------------


def pairs_of(names: str) -> list[dict[str, str]]:
    return [{"prompt": name, "completion": name.upper()} for name in names]


@pytest.mark.parametrize(
    "document",
    [
        {"train": pairs_of("abc"), "test": pairs_of("de")},
        {"test": pairs_of("de"), "version": 1.0, "train": pairs_of("abc")},
        {"data": {"train": pairs_of("abc"), "validation": pairs_of("de")}},
        {"Train": pairs_of("abc"), "dev": pairs_of("d"), "eval": pairs_of("e")},
        {"data": pairs_of("abc"), "heldout": pairs_of("de"), "info": {"by": "me"}},
    ],
    ids=range(5),
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_under_test_are_held_out(tmp_path: Path, document: Any, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(document, indent=indent))
    for stream in ("never", "always"):
        data = load_dataset(DataConfig(stream=stream), tmp_path / name, "sft", 0)
        assert [record.prompt[0].content for record in data.train] == [*"abc"]
        assert sorted(record.prompt[0].content for record in data.heldout) == [*"de"]
        assert data.brings_heldout and data.info.heldout.records == 2


def test_rows_under_other_names_are_bad_rows_and_not_gone(tmp_path: Path) -> None:
    document = {"train": pairs_of("abc"), "unlabelled": [{"prompt": "d"}], "test": pairs_of("e")}
    (tmp_path / "rows.json").write_text(json.dumps(document, indent=1))
    loaded = load_records([tmp_path / "rows.json"], max_bad_frac=0.5)
    assert (len(loaded.records), len(loaded.heldout)) == (3, 1)
    [bad] = loaded.quarantined
    assert "a row under 'unlabelled'" in bad.reason and bad.line == 17
    (tmp_path / "rows.json").write_text(json.dumps({"test": pairs_of("ab")}))
    assert len(load_records([tmp_path / "rows.json"]).records) == 2


@pytest.mark.parametrize(
    ("train", "apart"),
    [
        ("train.jsonl", "test.jsonl"), ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"), ("sums_train.jsonl", "sums_dev.jsonl"),
    ],
)  # fmt: skip
def test_files_named_test_beside_train_are_held_out(tmp_path: Path, train: str, apart: str) -> None:
    for name, letters in ((train, "abc"), (apart, "de")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, pairs_of(letters))
    data = load_dataset(DataConfig(), tmp_path, "sft", 0)
    assert [record.prompt[0].content for record in data.train] == [*"abc"]
    assert [record.prompt[0].content for record in data.heldout] == [*"de"]
    (tmp_path / train).unlink()
    assert len(load_dataset(DataConfig(heldout_frac=0.0), tmp_path, "sft", 0).train) == 2


# ---- ends, repetitions, and sides that are equal --------------------------------------------------------------------

MARKS = ["</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|return|>", "<｜end▁of▁sentence｜>"]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("tail", ["", "\n", "{mark}"])
def test_a_written_end_is_no_part_of_any_answer(tmp_path: Path, mark: str, tail: str) -> None:
    end = mark + tail.format(mark=mark)
    record = one(tmp_path, {"messages": turns(f"Hi{end}", f"Hello{end}", f"More{end}", f"Yes{end}")})
    assert [turn.content for turn in record.turns()] == ["Hi", "Hello", "More", "Yes"]
    spoken = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"Hello{end}"}]
    assert one(tmp_path, {"conversations": spoken}).completion == "Hello"
    sides = {"chosen": f"yes{end}", "rejected": f"no{end}"}
    as_turns = {name: turns("Hi", text) for name, text in sides.items()}
    as_text = {name: f"\n\nHuman: Hi\n\nAssistant: {text}" for name, text in sides.items()}
    listed = {"prompt": "Hi", "responses": [*sides.values()], "scores": [2, 1]}
    judged = {"prompt": "Hi", "response_a": sides["chosen"], "response_b": sides["rejected"], "winner": "a"}
    for row in ({"prompt": "Hi", **sides}, as_turns, as_text, listed, judged):
        record = one(tmp_path, row)
        assert (record.chosen, record.rejected, said(record)) == ("yes", "no", [("user", "Hi")])


def test_a_mark_that_is_no_end_stays(tmp_path: Path) -> None:
    record = one(tmp_path, {"messages": turns("Explain </s>", "It ends a text.")})
    assert said(record) == [("user", "Explain </s>")]
    assert one(tmp_path, {"messages": turns("a", "It was <s>5</s>")}).completion == "It was <s>5</s>"
    assert one(tmp_path, {"messages": turns("a", "b</s> c")}).completion == "b</s> c"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "yes</s>", "rejected": "yes"},
        {"chosen": turns("Hi", "yes<|im_end|>"), "rejected": turns("Hi", "yes \n")},
        {"prompt": "Hi", "response_a": "yes", "response_b": "yes</s>", "winner": "a"},
        {"prompt": "Hi", "chosen": "</s>", "rejected": "no"},
        {"chosen": turns("Hi", "yes"), "rejected": turns("Hi", "<|im_end|>")},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ],
    ids=range(6),
)
def test_sides_that_are_equal_or_empty_are_bad_rows(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="none of the 1 rows") as error:
        load(tmp_path, row)
    assert "equal" in error.value.where or "empty" in error.value.where


REPEATS = [
    ("Question: say {}\nAnswer: ", "Question: say {}\nAnswer: "), ("Say {}.", "Say {}. "), ("Say {}?", "Say {}?\n"),
    ("def f_{}(x):\n", "def f_{}(x):\n"), ("Say {} please ", "  Say {} please\n\n"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "repeated"), REPEATS)
def test_a_prompt_that_the_answers_repeat_is_not_trained(tmp_path: Path, prompt: str, repeated: str) -> None:
    asked = [(prompt.format(i), repeated.format(i)) for i in range(4)]
    rows = [{"prompt": ask, "chosen": f"{again}{i}", "rejected": f"{again}no"} for i, (ask, again) in enumerate(asked)]
    loaded = load(tmp_path, *rows)
    assert [(record.chosen.strip(), record.rejected.strip()) for record in loaded.records] == [
        (str(i), "no") for i in range(4)
    ]
    assert loaded.warnings == ["the answers of 4 rows begin with their prompt, and are read without it"]
    rows = [{"instruction": ask, "output": f"{again}{i}"} for i, (ask, again) in enumerate(asked)]
    assert [record.completion.strip() for record in load(tmp_path, *rows).records] == [*"0123"]
    rows = [
        {"prompt": ask, "response_a": f"{again}{i}", "response_b": f"{again}no", "winner": "b"}
        for i, (ask, again) in enumerate(asked)
    ]
    assert [record.rejected.strip() for record in load(tmp_path, *rows).records] == [*"0123"]


def test_an_answer_may_begin_with_its_question(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "Hi there"}, {"prompt": "Why?", "completion": "Because."}] * 3
    assert [record.completion for record in load(tmp_path, *rows).records] == ["Hi there", "Because."] * 3
    assert one(tmp_path, {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}).chosen == "Hi there"
    names = ("Osmosis", "Neural network", "Cell", "Ion channel")
    loaded = load(tmp_path, *({"prompt": name, "completion": f"{name} is a thing."} for name in names))
    assert [record.completion for record in loaded.records] == [f"{name} is a thing." for name in names]
    [warning] = loaded.warnings
    assert "the answers begin with their prompt, in a file of 4 rows, and are trained so" in warning


def test_an_answer_that_is_only_its_prompt_is_empty(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}: ", "chosen": f"Say {i}: {i}", "rejected": f"Say {i}: no"} for i in range(9)]
    rows.append({"prompt": "Say 9: ", "chosen": "Say 9: ", "rejected": "Say 9: no"})
    [bad] = load(tmp_path, *rows, max_bad_frac=0.2).quarantined
    assert (bad.line, bad.reason) == (10, "empty completion: chosen")


# ---- one prompt with most of the rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("others", [1, 3])
def test_a_prompt_with_most_of_the_rows_is_trained(tmp_path: Path, seed: int, others: int) -> None:
    rows = [{"prompt": "the same", "completion": f"c{i}"} for i in range(40)]
    rows += [{"prompt": f"other {i}", "completion": "c"} for i in range(others)]
    data = load_dataset(DataConfig(), write(tmp_path / "rows.jsonl", rows), "sft", seed)
    assert len(data.train) >= 40 and len(data.heldout) == 1 and data.warnings == []


def test_halves_that_cannot_be_parted_otherwise_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 2}", "completion": f"c{i}"} for i in range(40)]
    data = load_dataset(DataConfig(), write(tmp_path / "rows.jsonl", rows), "sft", 0)
    assert len(data.heldout) == 20
    mend = "bring a held-out part of your own, or set data.heldout_max"
    assert data.warnings == [f"20 of 40 records are held out, as equal prompts (1) stay together; {mend}"]
