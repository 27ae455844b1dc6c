"""Public data sets as they are published: rows, dialects, bad rows, and rows read by eye. They are looked for
in the folder PREFTUNE_TEST_DATA, or beside the repository; tests of files that are not there are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.dataset import as_schema, load_dataset, load_records
from core.errors import DataError
from core.records import Record
from core.schema import DataConfig

DATA = Path(os.environ.get("PREFTUNE_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
DEMOS = "llamafactory_demos"
FILES = {
    # file: dialect, records, bad rows, records that serve (sft, preference, prompts, text)
    f"{DEMOS}/alpaca_en_demo.json": ("alpaca", 999, 0, (999, 0, 985, 0)),
    f"{DEMOS}/identity.json": ("alpaca", 91, 0, (91, 0, 89, 0)),
    f"{DEMOS}/v1_sft_demo.jsonl": ("messages", 500, 0, (500, 0, 498, 0)),
    f"{DEMOS}/glaive_toolcall_en_demo.json": ("sharegpt", 300, 0, (300, 0, 237, 0)),
    f"{DEMOS}/reason_tool_use_demo_50.jsonl": ("messages", 50, 0, (50, 0, 50, 0)),
    f"{DEMOS}/dpo_en_demo.json": ("preference", 300, 0, (300, 300, 295, 0)),
    f"{DEMOS}/v1_dpo_demo.jsonl": ("preference_messages", 10, 0, (10, 10, 10, 0)),
    f"{DEMOS}/kto_en_demo.json": ("messages", 300, 0, (150, 0, 297, 0)),
    f"{DEMOS}/c4_demo.jsonl": ("text", 300, 0, (0, 0, 0, 300)),
    f"{DEMOS}/wiki_demo.txt": ("text", 30, 0, (0, 0, 0, 30)),
    "hh_rlhf/harmless-base_test.jsonl.gz": ("preference_transcript", 2308, 4, (2308, 2308, 2306, 0)),
    "stack_exchange_paired/stack_exchange_paired_tiny.json": ("preference", 25, 0, (25, 25, 8, 0)),
    "tinker_conversations/conversations.jsonl": ("messages", 128, 0, (128, 0, 128, 0)),
    "fastchat/dummy_conversation.json": ("sharegpt", 500, 0, (500, 0, 384, 0)),
    "gsm8k/train.jsonl": ("question_answer", 7473, 0, (7473, 0, 7473, 0)),
    "dolly_hhrlhf/dolly_hhrlhf_train_small.jsonl": ("prompt_completion", 1000, 0, (1000, 0, 999, 0)),
    "self_instruct/seed_tasks.jsonl": ("prompts", 175, 0, (0, 0, 175, 0)),
    "ifbench/IFBench_test.jsonl": ("prompts", 300, 0, (0, 0, 300, 0)),
    "truthfulqa/finetune_truth.jsonl": ("prompt_completion", 10831, 0, (10831, 0, 8781, 0)),
    "banking77/train.csv": ("text", 10003, 0, (0, 0, 0, 10003)),
    "wikitext2/valid.txt": ("text", 2461, 0, (0, 0, 0, 2461)),
}  # fmt: skip


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not at hand")
    return DATA / name


def serving(records: list[Record], schema: str) -> int:
    try:
        return len(as_schema(records, schema))
    except DataError:
        return 0


@pytest.mark.parametrize("name", FILES)
def test_real_files(name: str) -> None:
    dialect, records, bad, serve = FILES[name]
    loaded = load_records([real(name)])
    assert (loaded.dialect.name, len(loaded.records), len(loaded.quarantined)) == (dialect, records, bad)
    assert tuple(serving(loaded.records, schema) for schema in ("sft", "preference", "prompts", "text")) == serve
    for record in loaded.records:
        assert record.text or record.prompt[-1].role in {"user", "tool"}
        assert all(text is None or text.strip() for text in (record.completion, record.chosen, record.rejected))
    lines = [record.meta["line"] for record in loaded.records]
    assert lines == sorted(lines)


def roles(record: Record) -> str:
    return " ".join(message.role for message in record.prompt)


def test_turns_of_real_conversations() -> None:
    for name in ("fastchat/dummy_conversation.json", f"{DEMOS}/kto_en_demo.json", f"{DEMOS}/dpo_en_demo.json"):
        for record in load_records([real(name)]).records:
            turns = [message.role for message in record.prompt if message.role != "system"]
            assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    first = load_records([real(f"{DEMOS}/glaive_toolcall_en_demo.json")]).records[0]
    assert roles(first) == "user assistant user assistant tool assistant user"
    assert first.prompt[3].content.startswith('{"name": "search_recipes"')
    assert first.completion.startswith("I'm sorry, but as an AI, I don't have the capability")
    assert first.meta["extra"]["tools"].startswith('[{"name": "search_recipes"')


def test_transcripts_are_cut_where_the_published_text_is() -> None:
    loaded = load_records([real("hh_rlhf/harmless-base_test.jsonl.gz")])
    assert {row.reason for row in loaded.quarantined} == {"empty completion: chosen"}
    first = loaded.records[0]
    assert roles(first) == "user assistant user assistant user"
    assert first.prompt[0].content == "what are some pranks with a pen i can do?"
    assert first.chosen.startswith("No, sorry!  All of these involve a pen")
    assert first.rejected.startswith("There are lots of funny things you can do with pens")
    for record in loaded.records:  # some transcripts have an assistant that speaks twice; that is one turn
        assert roles(record) == " ".join(["user", "assistant"] * (len(record.prompt) // 2) + ["user"])
    twice = next(record for record in loaded.records if record.meta["line"] == 1255)
    assert twice.chosen.endswith("\n\nI think they call them that because")


def test_values_of_real_rows() -> None:
    record = load_records([real("gsm8k/train.jsonl")]).records[0]
    assert record.completion == record.answer
    assert record.answer.endswith("#### 72")
    record = load_records([real(f"{DEMOS}/kto_en_demo.json")]).records
    assert sum(one.label for one in record) == 150
    columns = {"prompt": "Body", "input": "Question", "answer": "Answer"}
    record = load_records([real("svamp/SVAMP.json")], columns).records[0]
    assert record.prompt[0].content.endswith("on each pack\n\nHow much do you have to pay to buy each pack?")
    assert (record.answer, record.meta["line"]) == ("51.0", 2)


def test_rows_without_known_columns_are_refused_with_them() -> None:
    with pytest.raises(DataError, match="columns ID, Body, Question, Equation, Answer, Type"):
        load_records([real("svamp/SVAMP.json")])


def test_a_real_file_becomes_a_dataset() -> None:
    data = load_dataset(DataConfig(), real("hh_rlhf/harmless-base_test.jsonl.gz"), "preference", 17)
    assert len(data.heldout) == 200
    assert len(data.train) == 2108
    assert not {record.prompt_key for record in data.train} & {record.prompt_key for record in data.heldout}
    assert data.info["quarantined"] == 4
