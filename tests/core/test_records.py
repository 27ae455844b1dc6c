"""Records: dialects, bad rows, views by schema, the split, the quarantine file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.data.dataset import load_dataset
from core.data.dialects import detect
from core.data.loading import load_records
from core.data.records import BadRow, Message, Record, Span, Step, write_quarantine
from core.data.split import split
from core.data.views import as_schema
from core.errors import ConfigError, DataError
from core.settings.data_schema import DataConfig

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
ASKED = (Message("user", "Hi"),)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_one(tmp_path: Path, row: dict, **options) -> tuple[Record, str]:
    loaded = load_records([write(tmp_path / "rows.jsonl", [row])], **options)
    assert loaded.quarantined == []
    assert len(loaded.records) == 1
    return loaded.records[0], loaded.dialect.name


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What\nnow?\n\nAssistant:"
TALK = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "What\nnow?"))
CALL = '{"name": "f", "arguments": {"x": 1}}'
CASES = {
    "prompt/completion": (
        {"prompt": "Hi", "completion": "Hello"},
        "prompt_completion",
        {"prompt": ASKED, "completion": "Hello"},
    ),
    "prompt/response": (
        {"prompt": "Hi", "response": "Hello"},
        "prompt_completion",
        {"prompt": ASKED, "completion": "Hello"},
    ),
    "input/target": ({"input": "Hi", "target": "Hello"}, "prompt_completion", {"prompt": ASKED, "completion": "Hello"}),
    "prompt as messages": (
        {"prompt": [USER], "completion": [BOT]},
        "prompt_completion",
        {"prompt": ASKED, "completion": "Hello"},
    ),
    "question/answer": (
        {"question": "Hi", "answer": "Hello"},
        "question_answer",
        {"prompt": ASKED, "completion": "Hello", "answer": "Hello"},
    ),
    "alpaca": (
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        "alpaca",
        {"prompt": (Message("user", "Add\n\n1, 2"),), "completion": "3"},
    ),
    "alpaca without input": (
        {"instruction": "Hi", "input": "", "output": "Hello", "text": "Hi Hello"},
        "alpaca",
        {"prompt": ASKED, "completion": "Hello"},
    ),
    "dolly": (
        {"instruction": "Add", "context": "1, 2", "response": "3", "category": "math"},
        "alpaca",
        {"prompt": (Message("user", "Add\n\n1, 2"),), "completion": "3"},
    ),
    "messages": ({"messages": [USER, BOT]}, "messages", {"prompt": ASKED, "completion": "Hello"}),
    "messages that end with the user": ({"messages": [USER, BOT, USER]}, "messages", {"completion": None}),
    "messages beside a prompt": (
        {"prompt": "Hi", "prompt_id": "7", "messages": [USER, BOT]},
        "messages",
        {"prompt": ASKED, "completion": "Hello"},
    ),
    "typed parts": (
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "value": "Be"}, {"type": "text", "text": " kind"}]},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}], "loss_weight": 0.0},
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "A greeting."}, {"type": "text", "value": "Hello"}],
                },
            ]
        },
        "messages",
        {
            "prompt": (Message("system", "Be kind"), Message("user", "Hi", 0.0)),
            "completion": "Hello",
            "reasoning": "A greeting.",
        },
    ),
    "tool calls": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "1", "tool_call_id": "x"},
                BOT,
            ]
        },
        "messages",
        {
            "prompt": (
                *ASKED,
                Message("assistant", "", calls=('{"name": "f", "arguments": {}}',)),
                Message("tool", "1"),
            ),
            "completion": "Hello",
        },
    ),
    "sharegpt": (
        {
            "system": "Be kind",
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "Hello"},
            ],
            "tools": '[{"type": "function", "function": {"name": "f", "parameters": {}}}]',
        },
        "sharegpt",
        {
            "prompt": (
                Message("system", "Be kind"),
                *ASKED,
                Message("assistant", "", calls=(CALL,)),
                Message("tool", "1"),
            ),
            "completion": "Hello",
            "tools": ('{"name": "f", "parameters": {}}',),
        },
    ),
    "preference": (
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "score_chosen": 8.5, "score_rejected": 2},
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go", "margin": 6.5, "completion": None},
    ),
    "preference as message lists": (
        {"prompt": [USER], "chosen": [BOT], "rejected": [{"role": "assistant", "content": "Go"}]},
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "preference that repeats the prompt": (
        {"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "Go"}]},
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "preference in sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "preference in alpaca": (
        {"instruction": "Add", "input": "1, 2", "chosen": "3", "rejected": "4"},
        "preference",
        {"prompt": (Message("user", "Add\n\n1, 2"),), "chosen": "3", "rejected": "4"},
    ),
    "implicit prompt": (
        {"chosen_messages": [USER, BOT], "rejected_messages": [USER, {"role": "assistant", "content": "Go"}]},
        "preference_messages",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "transcripts": (
        {"chosen": TRANSCRIPT + " Rest.", "rejected": TRANSCRIPT + " Run."},
        "preference_transcript",
        {"prompt": TALK, "chosen": "Rest.", "rejected": "Run."},
    ),
    "prompt as a transcript": (
        {"prompt": TRANSCRIPT, "chosen": "Rest.", "rejected": "Run."},
        "preference",
        {"prompt": TALK, "chosen": "Rest.", "rejected": "Run."},
    ),
    "response_j and response_k": (
        {"question": "Hi", "response_j": "Hello", "response_k": "Go"},
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "prompts": ({"prompt": "Hi", "answer": 4}, "prompts", {"prompt": ASKED, "answer": "4", "completion": None}),
    "prompts by question": ({"question": "Hi"}, "prompts", {"prompt": ASKED, "answer": None}),
    "text": ({"text": "Hi there"}, "text", {"prompt": (), "text": "Hi there"}),
    "label": (
        {"prompt": "Hi", "completion": "Hello", "label": False},
        "prompt_completion",
        {"completion": "Hello", "label": False},
    ),
    "label beside messages": ({"messages": [USER, BOT], "kto_tag": True}, "messages", {"label": True}),
    "reasoning, call and weight of the last turn": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "tool_call", "value": CALL}],
                    "weight": 2,
                },
            ]
        },
        "messages",
        {"prompt": ASKED, "completion": "", "reasoning": "Hm.", "calls": (CALL,), "weight": 2.0},
    ),
    "worked answer": (
        {"question": "Hi", "answer": "1 + 1 = 2\n#### 2"},
        "question_answer",
        {"completion": "1 + 1 = 2\n#### 2", "answer": "2", "rationale": "1 + 1 = 2"},
    ),
    "number as answer": (
        {"question": "Hi", "answer": 2.0},
        "number_answer",
        {"prompt": ASKED, "completion": "2", "answer": "2"},
    ),
    "other case and spaces": (
        {"Question": "Hi", "Best Answer": "Hello", "Best Incorrect Answer": "Go"},
        "preference",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go"},
    ),
    "labelled": (
        {"input": "Hi", "output_1": "Go", "output_2": "Hello", "label": 2},
        "preference_labelled",
        {"prompt": ASKED, "chosen": "Hello", "rejected": "Go", "label": None},
    ),
    "labelled by letter": (
        {"prompt": "Hi", "response_a": "Hello", "response_b": "Go", "winner": "model_a"},
        "preference_labelled",
        {"chosen": "Hello"},
    ),
    "a tie is a prompt": (
        {"prompt": "Hi", "response_a": "Hello", "response_b": "Go", "winner": "tie"},
        "preference_labelled",
        {"prompt": ASKED, "chosen": None, "completion": None},
    ),
    "labelled conversations": (
        {"conversation_a": [USER, BOT], "conversation_b": [USER, {**BOT, "content": "Go"}], "winner": "b"},
        "preference_judged_messages",
        {"prompt": ASKED, "chosen": "Go", "rejected": "Hello"},
    ),
    "counted from 0": (
        {"prompt": "Hi", "response_0": "Go", "response_1": "Hello", "better_response_id": 1},
        "preference_indexed",
        {"chosen": "Hello", "rejected": "Go"},
    ),
    "stepwise": (
        {"prompt": "Hi", "completions": ["One.", "Two."], "labels": [True, False]},
        "stepwise",
        {"completion": "One.\nTwo.", "steps": (Step("One.", 1.0), Step("Two.", 0.0)), "label": False},
    ),
    "steps as objects": (
        {"question": "Hi", "steps": [{"text": "One.", "rating": 1}, {"text": "Two."}]},
        "steps",
        {"prompt": ASKED, "completion": "One.\nTwo.", "steps": (Step("One.", 1.0), Step("Two.")), "label": True},
    ),
    "spans": (
        {"prompt": "Hi", "completion": "Helo you", "spans": [{"start": 0, "end": 4, "label": "typo"}]},
        "span_feedback",
        {"completion": "Helo you", "spans": (Span(0, 4, "typo"),), "label": False},
    ),
    "options by index": (
        {"query": "Hi?", "choices": ["a", "b"], "gold": 1},
        "multiple_choice",
        {"prompt": (Message("user", "Hi?\n\nA. a\nB. b"),), "completion": "B", "answer": "B"},
    ),
    "options by label": (
        {
            "question": {"stem": "Hi?", "choices": [{"label": "1", "text": "a"}]},
            "choices": {"label": ["1", "2"], "text": ["a", "b"]},
            "answerKey": "2",
        },
        "multiple_choice",
        {"prompt": (Message("user", "Hi?\n\nA. a\nB. b"),), "completion": "B"},
    ),
    "options in columns": (
        {"question": "Hi?", "A": "a", "B": "b", "C": 3, "answer": "C"},
        "multiple_choice_table",
        {"prompt": (Message("user", "Hi?\n\nA. a\nB. b\nC. 3"),), "completion": "C"},
    ),
    "classes": (
        {"text": "Hi", "category": "greeting"},
        "classification",
        {"prompt": ASKED, "completion": "greeting", "answer": "greeting", "text": "Hi"},
    ),
    "turns": ({"turns": [{"content": "Hi"}, {"content": "More"}]}, "turns", {"prompt": ASKED, "completion": None}),
    "functions": (
        {"question": [[USER]], "function": [{"name": "f"}]},
        "function_calling",
        {"prompt": ASKED, "tools": ('{"name": "f"}',)},
    ),
    "reply as JSON text": (
        {
            "context": json.dumps([{"role": "user", "text": "Hi"}]),
            "generation": json.dumps({"role": "agent", "api": {"f": {"x": 1}}}),
            "reward": 0.0,
        },
        "judged_reply",
        {"prompt": ASKED, "completion": "", "calls": (CALL,), "score": 0.0, "label": False},
    ),
    "score": ({"prompt": "Hi", "completion": "Hello", "score": 3}, "prompt_completion", {"score": 3.0}),
}  # fmt: skip


SEVERAL = {
    "scores": (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1, 3, 1]},
        "scored_list",
        [("b", "a", 2.0), ("b", "c", 2.0)],
    ),
    "ranks": ({"prompt": "Hi", "answers": ["a", "b"], "ranks": [2, 1]}, "ranked_list", [("b", "a", 1.0)]),
    "objects": (
        {"instruction": "Hi", "completions": [{"response": "a", "overall_score": 2}, {"response": "b", "rank": 1}]},
        "judged_list",
        [("a", "b", 3.0)],
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_a_row_may_hold_several_pairs(tmp_path: Path, case: str) -> None:
    row, name, pairs = SEVERAL[case]
    loaded = load_records([write(tmp_path / "rows.jsonl", [row])])
    assert loaded.dialect.name == name
    assert [(record.chosen, record.rejected, record.margin) for record in loaded.records] == pairs
    assert [record.meta["part"] for record in loaded.records] == list(range(len(pairs)))
    assert [record.completion for record in as_schema(loaded.records, "sft")] == [pairs[0][0]]


def test_instances_are_records(tmp_path: Path) -> None:
    row = {"instruction": "Add", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "0"}]}
    loaded = load_records([write(tmp_path / "rows.jsonl", [row])])
    assert [(record.prompt[0].content, record.completion) for record in as_schema(loaded.records, "sft")] == [
        ("Add\n\n1, 2", "3"),
        ("Add", "0"),
    ]


def test_steps_with_several_tries(tmp_path: Path) -> None:
    """As in PRM800K: the way taken, and every other try after the steps before it."""
    steps = [
        {"completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}], "chosen_completion": 0},
        {"completions": [{"text": "c", "rating": -1}], "human_completion": {"text": "d"}, "chosen_completion": None},
    ]
    row = {"question": {"problem": "Hi", "ground_truth_answer": "4"}, "label": {"steps": steps}}
    loaded = load_records([write(tmp_path / "rows.jsonl", [row])])
    assert loaded.dialect.name == "process"
    assert [record.steps for record in loaded.records] == [
        (Step("a", 1.0), Step("d")),
        (Step("b", -1.0),),
        (Step("a"), Step("c", -1.0)),
    ]
    assert [record.completion for record in as_schema(loaded.records, "sft")] == ["a\nd"]
    assert {record.answer for record in loaded.records} == {"4"}


def test_placeholders_stay_and_are_warned_of(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "I am {{name}} of {{ author }}" if i else "{x} {{1}}"} for i in range(4)]
    data = load_dataset(DataConfig(heldout_frac=0.0), write(tmp_path / "rows.jsonl", rows), "sft", 0)
    assert data.train[1].completion == "I am {{name}} of {{ author }}"
    [warning] = data.warnings
    assert warning.startswith("3 records hold placeholders ({{") and "{{ author }}" in warning


def test_a_dialect_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "Hi", "category": "greeting"}])
    assert load_records([path]).dialect.name == "classification"
    assert load_records([path], dialect="text").records[0].prompt == ()
    with pytest.raises(ConfigError, match="no dialect 'txt'") as error:
        load_records([path], dialect="txt")
    assert error.value.what == "there is no dialect 'txt'. Did you mean 'text'?" and ", text" in error.value.mend


@pytest.mark.parametrize("case", CASES)
def test_dialects_are_found_and_read(tmp_path: Path, case: str) -> None:
    row, name, fields = CASES[case]
    record, found = load_one(tmp_path, row)
    assert found == name
    assert {key: getattr(record, key) for key in fields} == fields
    assert (record.meta["file"], record.meta["line"]) == ("rows.jsonl", 1)


def test_mapping_and_other_columns_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"id": 1, "question": "Hi", "response": "Hello"}])
    loaded = load_records([path])
    assert loaded.dialect.mapping == {"prompt": "question", "completion": "response"}
    assert loaded.dialect.columns == ("id", "question", "response")
    assert loaded.records[0].meta["extra"] == {"id": 1}


def test_columns_override_what_the_names_say(tmp_path: Path) -> None:
    row = {"text": "Sort a list", "code": "list.sort()", "Answer": 7}
    record, name = load_one(tmp_path, row, columns={"prompt": "text", "completion": "code", "answer": "Answer"})
    assert (name, record.prompt[0].content, record.completion) == ("prompt_completion", "Sort a list", "list.sort()")
    assert record.answer == "7"
    record, name = load_one(tmp_path, {"question": "Hi", "answer": "4"}, columns={"prompt": "question"})
    assert (name, record.completion, record.answer) == ("question_answer", "4", "4")


def test_columns_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"Question": "Hi", "Answer": "4"}])
    with pytest.raises(ConfigError, match="no field") as config:
        load_records([path], {"promt": "Question"})
    assert config.value.what.endswith("Did you mean 'prompt'?") and "prompt, input," in config.value.mend
    for columns, meant in (({"prompt": "Questoin"}, "Question"), ({"prompt": "Question", "answer": "Answr"}, "Answer")):
        with pytest.raises(DataError, match="the columns are Question, Answer") as data:
            load_records([path], columns)
        assert data.value.what.endswith(f"Did you mean '{meant}'?")
        assert data.value.mend == "name one of these columns"


def test_detection_does_not_depend_on_bad_rows_before_and_between(tmp_path: Path) -> None:
    good = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    bad = [{"prompt": "p"}, {"chosen": "", "rejected": "b", "prompt": "p"}, {"other": 1}]
    assert detect(good + bad).name == detect(bad + good).name == "preference"
    rows = [{"junk": i} for i in range(130)] + good
    loaded = load_records([write(tmp_path / "rows.jsonl", rows)], max_bad_frac=1)
    assert (loaded.dialect.name, len(loaded.records), len(loaded.quarantined)) == ("preference", 40, 130)


BAD_ROWS = [
    ('{"prompt": "p", "chosen": "a", "rejec', "not JSON: Unterminated string starting at column 32"),
    ("[1, 2]", "not an object"),
    ('{"prompt": "p", "chosen": "a"}', "missing columns: rejected"),
    ('{"prompt": null, "chosen": "a", "rejected": null}', "missing columns: prompt, rejected"),
    ('{"prompt": " ", "chosen": "a", "rejected": "b"}', "empty prompt"),
    ('{"prompt": "p", "chosen": "", "rejected": "b"}', "empty completion: chosen"),
    ('{"prompt": "p", "chosen": "a", "rejected": " a"}', "chosen equal to rejected"),
    (b'{"prompt": "p\xff", "chosen": "a", "rejected": "b"}', "not UTF-8"),
    ('{"prompt": "p\\ud800", "chosen": "a", "rejected": "b"}', "not UTF-8: a lone surrogate"),
    ('{"prompt": "p", "chosen": 3, "rejected": "b"}', "wrong type: chosen is a number"),
    ('{"prompt": "p", "chosen": "a", "rejected": {"role": "user", "content": "b"}}', "the last turn of rejected"),
    ('{"prompt": "p", "chosen": {"role": "boss", "content": "b"}, "rejected": "b"}', "unknown role 'boss'"),
    ('{"prompt": "p", "chosen": {"role": "gpt"}, "rejected": "b"}', "a message without content"),
    (
        '{"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], "chosen": "a", "rejected": "b"}',
        "content part of type 'image_url'",
    ),
    ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": "wide"}', "wrong type: margin is text"),
    ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": NaN}', "wrong type: margin is a number"),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_bad_rows_are_put_aside_with_line_and_reason(tmp_path: Path, newline: bytes) -> None:
    good = b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1}'
    lines = [b"\xef\xbb\xbf" + good, b""]
    expected = []
    for row, reason in BAD_ROWS:
        lines += [row if isinstance(row, bytes) else row.encode(), good]
        expected.append((len(lines) - 1, reason))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(newline.join(lines))
    loaded = load_records([path], max_bad_frac=0.5)
    assert len(loaded.records) == len(BAD_ROWS) + 1
    assert [record.meta["line"] for record in loaded.records[:3]] == [1, 4, 6]
    for row, (line, reason) in zip(loaded.quarantined, expected, strict=True):
        assert (row.file, row.line) == ("rows.jsonl", line)
        assert row.reason.startswith(reason)
        assert row.row


def test_reasons_name_the_column_of_the_file(tmp_path: Path) -> None:
    rows = [{"question": "q", "response_j": "a", "response_k": "b"}] * 3
    rows.append({"question": "q", "response_j": 5, "response_k": "b"})
    loaded = load_records([write(tmp_path / "rows.jsonl", rows)], max_bad_frac=0.5)
    assert "(column 'response_j')" in loaded.quarantined[0].reason


def test_conversations_that_part_early_are_no_pair(tmp_path: Path) -> None:
    rows = [{"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "Go"}]}] * 3
    rows.append({"chosen": [USER, BOT], "rejected": [{**USER, "content": "Ho"}, {**BOT, "content": "Go"}]})
    loaded = load_records([write(tmp_path / "rows.jsonl", rows)], max_bad_frac=0.5)
    assert [row.reason for row in loaded.quarantined] == ["chosen and rejected part before their last turn"]


def test_too_many_bad_rows_stop_with_the_first_three(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c"}] * 6 + [{"prompt": "p", "completion": ""}] * 4
    with pytest.raises(DataError) as error:
        load_records([write(tmp_path / "rows.jsonl", rows)], max_bad_frac=0.3)
    assert "4 of 10 rows" in error.value.what
    assert error.value.where.count("empty completion") == 3
    assert "rows.jsonl:7" in error.value.where
    assert "data.max_bad_frac" in error.value.mend
    assert len(load_records([tmp_path / "rows.jsonl"], max_bad_frac=0.4).quarantined) == 4


def test_quarantine_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    assert write_quarantine([], path) is None
    assert not path.parent.exists()
    row = BadRow("a.jsonl", 3, "not JSON", "{é")
    assert write_quarantine([row], path) == path
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "file": "a.jsonl", "line": 3, "reason": "not JSON", "row": "{é"
    }  # fmt: skip
    assert list(path.parent.iterdir()) == [path]


def test_keys_and_fingerprint_follow_content_only(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "c"}]
    (tmp_path / "deep").mkdir()
    one = load_records([write(tmp_path / "a.jsonl", rows)])
    (tmp_path / "deep" / "b.json").write_text(json.dumps(rows, indent=1))
    other = load_records([tmp_path / "deep" / "b.json"])
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint == "b6930e6d95660e02cd720c5da7be6aa90511b28d8bd26cd24bf7da5638ad02aa"
    assert Record(completion="", text="a").key != Record(text="a").key
    assert Record(prompt=(Message("user", "ab"),)).prompt_key != Record(prompt=(Message("usera", "b"),)).prompt_key
    assert Record(text="a", meta={"extra": {"x": 1}}).key != Record(text="a").key
    assert Record(text="a", meta={"line": 1}).key == Record(text="a", meta={"line": 2}).key


def test_views_by_schema() -> None:
    pair = Record(prompt=ASKED, chosen="good", rejected="bad", margin=1.0)
    done = Record(prompt=ASKED, completion="Hello", answer="4")
    bad = Record(prompt=(Message("user", "x"),), completion="no", label=False)
    text = Record(text="raw")
    records = [pair, done, bad, text]
    assert [record.completion for record in as_schema(records, "sft")] == ["good", "Hello"]
    assert as_schema(records, "preference") == [pair]
    assert [(record.prompt[0].content, record.answer) for record in as_schema(records, "prompts")] == [
        ("Hi", "4"),
        ("x", None),
    ]
    assert as_schema(records, "text") == [text]
    with pytest.raises(ValueError, match="one of sft"):
        as_schema(records, "pairs")


def test_a_schema_that_nothing_serves_says_what_was_found(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c", "id": 1}])
    with pytest.raises(DataError, match=r"chosen and rejected.*'prompt_completion'.*prompt, completion, id"):
        load_dataset(DataConfig(), path, "preference", 0)


def rows_for(prompts: int, copies: int = 1) -> list[Record]:
    return [
        Record(prompt=(Message("user", f"prompt {i}"),), completion=f"{copy}")
        for copy in range(copies)
        for i in range(prompts)
    ]


def prompts_of(records: list[Record]) -> set[str]:
    return {record.prompt_key for record in records}


def test_split_keeps_equal_prompts_together_and_records_in_place() -> None:
    records = rows_for(300, copies=3)
    train, heldout = split(records, 0.2, 1000, seed=1)
    assert len(train) + len(heldout) == 900
    assert not prompts_of(train) & prompts_of(heldout)
    assert 0.12 < len(heldout) / 900 < 0.28
    grown, held = split(records + rows_for(600), 0.2, 1000, seed=1)
    assert prompts_of(heldout) <= prompts_of(held)
    assert prompts_of(train) <= prompts_of(grown)
    assert split(records[::-1], 0.2, 1000, seed=1)[1] == heldout[::-1]
    assert prompts_of(split(records, 0.2, 1000, seed=2)[1]) != prompts_of(heldout)


def test_split_at_its_edges() -> None:
    records = rows_for(50, copies=2)
    assert len(split(records, 0.5, 7, 0)[1]) == 6  # three prompts of two records
    assert split(records, 0.0, 10, 0) == (records, [])
    assert split(records, 0.5, 0, 0) == (records, [])
    assert len(split(records[:2], 0.01, 10, 0)[1]) == 1
    assert split(records[:1], 0.9, 10, 0) == (records[:1], [])


def test_dataset_of_a_file_is_split_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(60)] + [{"prompt": ""}]
    path = write(tmp_path / "rows.jsonl", rows)
    data = load_dataset(DataConfig(system="Be kind", limit=40, heldout_frac=0.25), path, "sft", 3)
    assert len(data.train) + len(data.heldout) == 40
    assert data.heldout
    assert not prompts_of(data.train) & prompts_of(data.heldout)
    assert prompts_of(data.heldout_prompts) == prompts_of(data.heldout)
    assert {record.prompt[0] for record in data.train + data.heldout} == {Message("system", "Be kind")}
    plain = load_dataset(DataConfig(limit=40, heldout_frac=0.25), path, "sft", 3)
    assert [record.meta["line"] for record in plain.heldout] == [record.meta["line"] for record in data.heldout]
    info = json.loads(json.dumps(data.info.to_json()))
    assert info["train"]["records"] == len(data.train)
    assert (info["train"]["dialect"], info["train"]["files"]) == ("prompt_completion", ["rows.jsonl"])
    assert info["train"]["mapping"] == {"prompt": "prompt", "completion": "completion"}
    assert info["heldout"] == {"records": len(data.heldout), "prompts": len(data.heldout)}
    assert info["quarantined"] == 1 == len(data.quarantined)
    assert info["fingerprint"] != plain.info.fingerprint


def test_folder_of_parts(tmp_path: Path) -> None:
    write(tmp_path / "sft.jsonl", [{"prompt": f"s{i}", "completion": "c"} for i in range(20)])
    write(tmp_path / "preference.jsonl", [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(20)])
    write(tmp_path / "heldout.jsonl", [{"prompt": "s3", "answer": "4"}, {"prompt": "new", "answer": "5"}])
    cfg = DataConfig(heldout_frac=0.2)
    sft = load_dataset(cfg, tmp_path, "sft", 0)
    assert sft.info.train.files == ["sft.jsonl"]
    assert sft.info.train.also_heldout == 1
    assert len(sft.train) + len(sft.heldout) == 19
    assert [record.answer for record in sft.heldout_prompts] == ["4", "5"]
    pairs = load_dataset(cfg, tmp_path, "preference", 0)
    assert len(pairs.train) + len(pairs.heldout) == 20
    assert pairs.heldout
    assert all(record.chosen == "a" for record in pairs.heldout)
    assert len(pairs.heldout_prompts) == 2
    prompts = load_dataset(cfg, tmp_path, "prompts", 0)
    assert prompts.info.train.files == ["sft.jsonl"]
    assert len(prompts.train) == 19
    assert [record.answer for record in prompts.heldout] == ["4", "5"]
    (tmp_path / "sft.jsonl").unlink()
    assert load_dataset(cfg, tmp_path, "sft", 0).info.train.files == ["preference.jsonl"]
    with pytest.raises(DataError, match="the folder holds preference"):
        load_dataset(cfg, tmp_path, "text", 0)


def test_folder_of_other_files_takes_them_all(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"prompt": "b", "completion": "c"}])
    write(tmp_path / "a.jsonl", [{"messages": [USER, BOT]}])
    write(tmp_path / "heldout.jsonl", [{"prompt": "h", "completion": "c"}])
    (tmp_path / "README.md").write_text("not data")
    data = load_dataset(DataConfig(), tmp_path, "sft", 0)
    assert [record.meta["file"] for record in data.train] == ["a.jsonl", "b.jsonl"]
    assert [record.completion for record in data.heldout] == ["c"]
    assert data.info.train.dialect == "messages, prompt_completion"
    assert data.info.train.mapping["a.jsonl"] == {"messages": "messages"}
    json.dumps(data.info.to_json())


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file of records"):
        load_dataset(DataConfig(), tmp_path, "sft", 0)
    write(tmp_path / "sft.jsonl", [{"prompt": "b", "completion": "c"}])
    write(tmp_path / "sft.json", [{"prompt": "b", "completion": "c"}])
    with pytest.raises(DataError, match=r"more than once: sft\.json, sft\.jsonl"):
        load_dataset(DataConfig(), tmp_path, "sft", 0)
    (tmp_path / "sft.json").rename(tmp_path / "heldout.json")
    with pytest.raises(DataError, match="every training record"):
        load_dataset(DataConfig(), tmp_path, "sft", 0)


def test_a_path_that_does_not_exist_names_the_near_one(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [])
    with pytest.raises(ConfigError, match="does not exist") as error:
        load_dataset(DataConfig(), tmp_path / "pair.jsonl", "sft", 0)
    assert "pairs.jsonl" in error.value.mend
    with pytest.raises(ConfigError, match="does not exist"):
        load_dataset(DataConfig(), tmp_path / "none" / "pair.jsonl", "sft", 0)
    with pytest.raises(ConfigError, match="does not exist"):
        load_dataset(DataConfig(), Path("missing/pair.jsonl"), "sft", 0)


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, **options) -> list[dict]:
        if name == "owner/none":
            raise ConnectionError("offline\nmore")
        asked.append((name, config, *options.values()))
        return [{"prompt": f"{name} {i}", "completion": options["split"]} for i in range(3)]

    asked: list[tuple] = []

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_dataset(DataConfig(heldout_frac=0.0), Path("owner/name"), "sft", 0)
    assert [record.completion for record in data.train] == ["train"] * 3
    assert data.train[2].meta == {"file": "owner/name", "line": 3, "source": "owner/name"}
    data = load_dataset(DataConfig(heldout_frac=0.0), Path("owner/name@v1:main:test[:2]"), "sft", 0)
    assert [record.completion for record in data.train] == ["test"] * 2
    assert asked == [("owner/name", None, "train", None, False), ("owner/name", "main", "test", "v1", True)]
    with pytest.raises(DataError, match="cannot load 'owner/none' from the hub: offline") as error:
        load_dataset(DataConfig(), Path("owner/none"), "sft", 0)
    assert "download" in error.value.mend


def test_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "datasets", "pyarrow", "numpy")
    code = f"import sys, core.data.dataset; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("written", "kept"), [("Lima.<|endoftext|>", "Lima."), ("Lima. </s>\n", "Lima. "), ("a </s> b", "a </s> b")]
)
def test_an_end_written_out_is_no_part_of_the_completion(tmp_path: Path, written: str, kept: str) -> None:
    (record,) = load_records([write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": written}])]).records
    assert record.completion == kept


def test_the_reason_of_a_bad_row_can_be_written():
    assert BadRow("a", 1, "label is '\udcff'", "{}").reason == "label is '\\udcff'"
