"""Public data sets as they are published: rows, dialects, bad rows, and rows read by eye. They are looked for
in the folder PREFTUNE_TEST_DATA, or beside the repository; tests of files that are not there are skipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from real_files import DATA, NO_RECORDS, PAGE, page

from core.data.dataset import load_dataset
from core.data.loading import load_records
from core.data.records import Message, Record, Span
from core.errors import DataError
from core.settings.data_schema import DataConfig

DEMOS = "llamafactory_demos"


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not at hand")
    return DATA / name


def first(name: str, **options) -> Record:
    return load_records([real(name)], **options).records[0]


@pytest.mark.slow
def test_every_file_loads_by_its_path_alone() -> None:
    real("README.md")
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", NO_RECORDS)
def test_files_without_records_are_refused(name: str) -> None:
    if name == "README.md":
        assert load_records([real(name)]).dialect.name == "text"
        return
    with pytest.raises(DataError, match=r"no known layout fits the columns|rows can be read") as error:
        load_records([real(name)])
    assert error.value.mend


def test_records_of_real_files_are_whole() -> None:
    for name in (f"{DEMOS}/reason_tool_use_demo_50.jsonl", f"{DEMOS}/kto_en_demo.json", "gsm8k/train.jsonl",
                 "taskmaster4/data/data_07.json", "qa_feedback/dev_feedback.json"):  # fmt: skip
        records = load_records([real(name)], max_bad_frac=1).records
        for record in records:
            assert record.text or record.prompt[-1].role in {"user", "tool"}
            assert record.calls or all(text is None or text.strip() for text in (record.completion, record.chosen))
        lines = [record.meta["line"] for record in records]
        assert lines == sorted(lines)


# Wrong rows in copies: each comes out with the line on which it stands.


def plant_lines(raw: bytes, wrong: bytes, header: int) -> tuple[bytes, list[int]]:
    """Lines 4, 9 and the last of a copy of the first 40 lines, counted without the header."""
    lines = raw.splitlines(keepends=True)[: 40 + header]
    for place in (3 + header, 8 + header):
        lines.insert(place, wrong + b"\n")
    return b"".join(lines) + wrong + b"\n", [4 + header, 9 + header, len(lines) + 1]


def plant_list(raw: bytes, wrong: bytes, _header: int) -> tuple[bytes, list[int]]:
    """Elements of a list, written over several lines each."""
    value = json.loads(raw)
    rows = (list(value.values()) if isinstance(value, dict) else value)[:20]
    pieces = [json.dumps(row, indent=1) for row in rows]
    for place in (2, 7):
        pieces.insert(place, wrong.decode())
    starts = [2]
    for piece in pieces:
        starts.append(starts[-1] + piece.count("\n") + 1)
    return ("[\n" + ",\n".join(pieces) + "\n]").encode(), [starts[2], starts[7]]


def plant_xml(raw: bytes, _wrong: bytes, _header: int) -> tuple[bytes, list[int]]:
    """The first answer is emptied."""
    start, end = raw.index(b"<Answer>") + 8, raw.index(b"</Answer>")
    return raw[:start] + raw[end:], [raw[: raw.index(b"<QAPair ")].count(b"\n") + 1]


Plant = Callable[[bytes, bytes, int], tuple[bytes, list[int]]]
PLANTED: dict[str, tuple[Plant, bytes, int, str]] = {
    # file: how, the wrong row, lines of the header, reason
    "gsm8k/train.jsonl": (plant_lines, b'{"question": "no answer"}', 0, "missing columns: answer"),
    "tinker_conversations/conversations.jsonl": (plant_lines, b'{"messages": [{"role": "b"}]}', 0, "unknown role"),
    f"{DEMOS}/v1_dpo_demo.jsonl": (plant_lines, b'{"chosen_messages": 3, "rejected_messages": []}', 0, "wrong type"),
    "self_instruct/seed_tasks.jsonl": (plant_lines, b'{"instruction": "x", "instances": [3]}', 0, "an instance"),
    "mbpp/mbpp.jsonl": (plant_lines, b'{"text": "x", "code": "", "test_list": ["a"]}', 0, "empty completion"),
    "mosaic_icl/arc_easy.jsonl": (plant_lines, b'{"query": "x", "choices": ["a"], "gold": 7}', 0, "the right answer"),
    "arena_hard/question.jsonl": (plant_lines, b'{"turns": [" "]}', 0, "empty prompt"),
    f"{DEMOS}/c4_demo.jsonl": (plant_lines, b'{"text": "cut sho', 0, "not JSON"),
    "hh_rlhf/harmless-base_test.jsonl.gz": (plant_lines, b'{"chosen": "a", "rejected": "b"}', 0, "wrong type"),
    "banking77/train.csv": (plant_lines, b"one cell", 1, "wrong number of cells"),
    "mmlu/test/high_school_physics_test.csv": (plant_lines, b"a,b", 0, "wrong number of cells"),
    "flan_cot/qasc_train.tsv": (plant_lines, b"a\tb", 0, "wrong number of cells"),
    f"{DEMOS}/wiki_demo.txt": (plant_lines, b"caf\xe9", 0, "not UTF-8"),
    f"{DEMOS}/alpaca_en_demo.json": (plant_list, b'{"instruction": "x", "output": " "}', 0, "empty completion"),
    f"{DEMOS}/glaive_toolcall_en_demo.json": (
        plant_list, b'{"conversations": [{"from": "function_call", "value": "x"}]}', 0, "a tool call"
    ),
    f"{DEMOS}/dpo_en_demo.json": (plant_list, b"[1, 2]", 0, "not an object"),
    "llmbar/Natural.json": (
        plant_list, b'{"input": "x", "output_1": "a", "output_2": "b", "label": 3}', 0, "unknown verdict"
    ),
    "svamp/SVAMP.json": (plant_list, b'{"Body": "x", "Question": "", "Answer": 1}', 0, "empty prompt"),
    "taskmaster4/data/data_07.json": (plant_list, b'{"utterances": [{"speaker": "he"}]}', 0, "unknown role"),
    "taskmaster4/reward/reward_00.json": (
        plant_list, b'{"context": "[]", "generation": "{}", "reward": 1}', 0, "a turn without a role"
    ),
    "qa_feedback/dev_feedback.json": (
        plant_list, b'{"question": "x", "prediction 1": "a", "feedback": [{"start": 0, "end": 9}]}', 0, "a span 0..9"
    ),
    "pubmedqa/ori_pqal_dev.json": (plant_list, b'{"QUESTION": "x"}', 0, "missing columns: CONTEXTS"),
    "medquad/9_CDC_QA/0000001.xml": (plant_xml, b"", 0, "empty completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_rows_are_quarantined_with_their_lines(tmp_path: Path, name: str) -> None:
    plant, wrong, header, reason = PLANTED[name]
    raw = real(name).read_bytes()
    packed = name.endswith(".gz")
    content, lines = plant(gzip.decompress(raw) if packed else raw, wrong, header)
    copy = tmp_path / Path(name).name
    copy.write_bytes(gzip.compress(content) if packed else content)
    found = [row for row in load_records([copy], max_bad_frac=0.5).quarantined if row.reason.startswith(reason)]
    assert [row.line for row in found] == lines
    with pytest.raises(DataError, match=r"data\.max_bad_frac=0\.0"):
        load_records([copy], max_bad_frac=0.0)


# Rows read by eye.


def roles(record: Record) -> str:
    return " ".join(message.role for message in record.prompt)


def test_turns_of_real_conversations() -> None:
    for name in ("fastchat/dummy_conversation.json", f"{DEMOS}/kto_en_demo.json", f"{DEMOS}/dpo_en_demo.json"):
        for record in load_records([real(name)]).records:
            turns = [message.role for message in record.prompt if message.role != "system"]
            assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]


def test_calls_tools_and_reasoning_of_real_conversations() -> None:
    record = first(f"{DEMOS}/glaive_toolcall_en_demo.json")
    assert roles(record) == "user assistant user assistant tool assistant user"
    call = {"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}
    assert [json.loads(text) for text in record.prompt[3].calls] == [call]
    assert record.prompt[3].content == ""
    assert record.completion.startswith("I'm sorry, but as an AI, I don't have the capability")
    assert json.loads(record.tools[0])["name"] == "search_recipes"
    record = first(f"{DEMOS}/reason_tool_use_demo_50.jsonl")
    assert record.reasoning.startswith("Okay, the user is asking for schools near latitude 40")
    assert record.completion.startswith("I'm sorry, but the available tools don't seem")
    assert json.loads(record.tools[0])["name"] == "get_device_asset_by_identifier"
    record = first("taskmaster4/data/data_07.json", max_bad_frac=1)
    assert roles(record).startswith("user assistant tool assistant tool assistant tool")
    assert json.loads(record.prompt[1].calls[0]) == {"name": "get_menu_items", "arguments": {"query": "Mocha"}}
    assert record.completion == "Great, you can pick up your order from the coffee bar."
    record = first("taskmaster4/reward/reward_00.json")
    assert (roles(record), record.score, record.label) == ("assistant user", 1.0, True)
    record = first("bfcl/BFCL_v4_simple_python.json")
    assert json.loads(record.tools[0])["name"] == "calculate_triangle_area"


def test_weights_of_real_turns() -> None:
    for record in load_records([real(f"{DEMOS}/v1_sft_demo.jsonl")]).records:
        assert record.weight == 1.0
        assert {message.weight for message in record.prompt} == {0.0}


def test_transcripts_are_cut_where_the_published_text_is() -> None:
    loaded = load_records([real("hh_rlhf/harmless-base_test.jsonl.gz")])
    assert {row.reason for row in loaded.quarantined} == {"empty completion: chosen"}
    one = loaded.records[0]
    assert roles(one) == "user assistant user assistant user"
    assert one.prompt[0].content == "what are some pranks with a pen i can do?"
    assert one.chosen.startswith("No, sorry!  All of these involve a pen")
    assert one.rejected.startswith("There are lots of funny things you can do with pens")
    for record in loaded.records:  # some transcripts have an assistant that speaks twice; that is one turn
        assert roles(record) == " ".join(["user", "assistant"] * (len(record.prompt) // 2) + ["user"])
    twice = next(record for record in loaded.records if record.meta["line"] == 1255)
    assert twice.chosen.endswith("\n\nI think they call them that because")


def test_answers_of_real_rows() -> None:
    record = first("gsm8k/train.jsonl")
    assert record.completion.endswith("altogether in April and May.\n#### 72")
    assert (record.answer, record.rationale.splitlines()[-1][:24]) == ("72", "Natalia sold 48+24 = <<4")
    record = first("flan_cot/aqua_train.tsv")
    assert record.prompt[0].content.endswith("1/7:1/7:1/14?\nOptions:\n(A) 300\n(B) 992\n(C) 1120\n(D) 552\n(E) 312")
    assert record.completion == "1/7:1/7:1/14 = 2:2:1\n1/5*5600 = 1120\n2240-1120 = 1120\nThe answer is (C)."
    assert record.answer == "(C)"
    record = first("svamp/SVAMP.json")
    assert record.prompt[0].content.endswith("on each pack, How much do you have to pay to buy each pack?")
    assert (record.completion, record.answer, record.meta["line"]) == ("51", "51", 2)
    columns = {"prompt": "Body", "input": "Question", "answer": "Answer"}
    record = first("svamp/SVAMP.json", columns=columns)
    assert (record.completion, record.answer) == (None, "51.0")
    record = first("mmlu/dev/abstract_algebra_dev.csv")
    assert record.prompt[0].content.endswith("is a field.\n\nA. 0\nB. 1\nC. 2\nD. 3")
    assert record.answer == "B"
    record = first("pubmedqa/ori_pqal_dev.json")
    assert record.text.startswith("Telephone counseling and tailored print")
    assert (record.answer, record.completion) == ("yes", "yes")
    assert record.prompt[0].content.startswith(record.text)
    records = load_records([real(f"{DEMOS}/kto_en_demo.json")]).records
    assert sum(one.label for one in records) == 150
    record = first("medquad/5_NIDDK_QA/0000001.xml")
    assert record.prompt == (Message("user", "What is (are) Acromegaly ?"),)
    assert (record.meta["line"], record.meta["extra"]["qtype"]) == (16, "information")
    assert (
        first("mbpp/mbpp.jsonl").meta["test_list"][0] == "assert min_cost([[1, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2) == 8"
    )


def test_comparisons_of_real_rows() -> None:
    record = first("llmbar/GPTInst.json")
    assert record.chosen.startswith('The phrase "smaller fish to fry" refers')
    records = load_records([real("qa_feedback/dev_feedback.json")]).records
    said, gold, *pairs = [record for record in records if record.meta["line"] == records[0].meta["line"]]
    assert said.spans == (Span(283, 401, "Irrelevant"), Span(489, 572, "Irrelevant"), Span(152, 282, "Irrelevant"))
    assert (said.label, gold.completion[:40]) == (False, "Bloom is the second studio album by Aust")
    assert len(pairs) == 4  # of the six verdicts two say that neither is better
    assert pairs[0].chosen == said.completion
    better: dict[str, set[str]] = {}
    for pair in pairs:
        better.setdefault(pair.chosen, set()).add(pair.rejected)
    assert not any(one in better.get(other, ()) for one in better for other in better[one])


def test_a_real_file_becomes_a_dataset() -> None:
    data = load_dataset(DataConfig(), real("hh_rlhf/harmless-base_test.jsonl.gz"), "preference", 17)
    assert len(data.heldout) == 200
    assert len(data.train) == 2108
    assert not {record.prompt_key for record in data.train} & {record.prompt_key for record in data.heldout}
    assert data.info.quarantined == 4


def test_a_real_folder_becomes_a_dataset() -> None:
    data = load_dataset(DataConfig(), real("medquad"), "sft", 17)
    assert len(data.train) + len(data.heldout) == 1192 + 270
    names = data.info.train.files
    assert len(names) == 151 + 59
    assert all(one < other for one, other in pairwise(names))


def test_real_placeholders_are_warned_of() -> None:
    data = load_dataset(DataConfig(heldout_frac=0.0), real(f"{DEMOS}/identity.json"), "sft", 17)
    [warning] = data.warnings
    assert "{{name}}" in warning and "{{author}}" in warning
