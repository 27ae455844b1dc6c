"""Every column and every key of a message is read, or named with how often it says something, and warned of where its
name changes the meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_kit import Lab, only_folder, read_json

from core.data.building import build_dataset
from core.data.dataset import load_dataset
from core.data.info import PartInfo
from core.data.loading import Loaded, load_records
from core.data.unread import column_pairs
from core.settings.data_schema import DataConfig, SourceConfig


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tmp_path: Path, rows: list[Any]) -> Loaded:
    return load_records([write(tmp_path / "rows.jsonl", rows)])


def test_columns_and_keys_are_counted_where_they_say_something(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "a", "name": "Ann", "id": None}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": "b", "refusal": "", "tool_calls": None}], "topic": "x"},
        {
            "messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": "b", "cache": 1}]}],
            "topic": "",
        },
        {"messages": [asked, {"role": "assistant", "content": "b", "id": 7}], "topic": None, "source": "y", "n": 0},
    ]
    loaded = load(tmp_path, rows)
    assert loaded.unread.to_json() == {
        "rows": 3, "extra_columns": {"n": 1, "source": 1, "topic": 1},
        "extra_keys": {"name": 3, "content.cache": 1, "id": 1},
    }  # fmt: skip
    assert loaded.warnings == []


def test_columns_that_come_late_are_counted_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c", **({"history": [["a", "b"]]} if i > 60 else {})} for i in range(70)]
    loaded = load(tmp_path, rows)
    assert loaded.unread.columns == {"history": 9}
    [warning] = loaded.warnings
    assert "the column 'history' holds turns before the question" in warning and "(9 of 70 rows)" in warning


MEANING = [
    ("split", "test", "which part of the data"), ("is_test", True, "which part of the data"),
    ("loss_mask", [0, 1], "whether something is trained"), ("mask", 1, "whether something is trained"),
    ("weights", [0, 1], "whether something is trained"), ("verdict", "bad", "is a verdict"),
    ("is_correct", False, "is a verdict"), ("thumbs_down", True, "is a verdict"), ("Rating", 1, "is a verdict"),
    ("rejected", "no", "is a verdict"), ("attachments", ["a.pdf"], "pictures"),
    ("past_messages2", 1, ""), ("id", 3, ""), ("source", "web", ""), ("topic", "x", ""), ("difficulty", 4, ""),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "told"), MEANING, ids=lambda value: str(value)[:20])
def test_a_name_that_changes_the_meaning_is_warned_of(tmp_path: Path, column: str, value: Any, told: str) -> None:
    rows = [{"prompt": "a", "completion": "b", column: value}] * 2 + [{"prompt": "a", "completion": "b"}]
    loaded = load(tmp_path, rows)
    assert loaded.unread.columns == {column: 2}
    assert len(loaded.warnings) == bool(told)
    assert all(f"the column '{column}'" in line and told in line and "2 of 3 rows" in line for line in loaded.warnings)


@pytest.mark.parametrize(("key", "told"), [("train_detail", "trained"), ("rating", "a verdict"), ("split", "part of")])
def test_a_key_of_messages_that_changes_the_meaning_is_warned_of(tmp_path: Path, key: str, told: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: [{"begin": 0}]}]
    [warning] = load(tmp_path, [{"messages": turns}] * 3).warnings
    assert f"the key '{key}' of messages" in warning and told in warning and "3 messages" in warning


def test_a_verdict_without_a_place_is_warned_of(tmp_path: Path) -> None:
    [warning] = load(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c", "label": "bad"}]).warnings
    assert "the column 'label' is a verdict" in warning
    [warning] = load(tmp_path, [{"text": "a", "label": 3}]).warnings
    assert "the column 'label' is a verdict" in warning
    [warning] = load(tmp_path, [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                                 "documents": ["c"]}]).warnings  # fmt: skip
    assert "the column 'documents' holds what the question is about" in warning


def test_files_and_sources_are_told_together(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": f"a{i}", "completion": "b", "id": i, "split": "x"} for i in range(1, 9)])
    write(tmp_path / "b.jsonl", [{"question": f"b{i}", "response": "b", "id": 1} for i in range(1, 9)])
    for stream in ("never", "always"):
        data = load_dataset(DataConfig(stream=stream), tmp_path, "sft", 0)
        assert data.info.train.rows == 16 and data.info.train.extra_columns == {"id": 16, "split": 8}
        assert len(data.warnings) == 1 and "8 of 16 rows" in data.warnings[0]
    cfg = DataConfig(mixture={name: SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"})
    mixed = build_dataset(cfg, {name: tmp_path / f"{name}.jsonl" for name in "ab"}, "sft", 0)
    assert mixed.info.mixture["a"].part.extra_columns == {"id": 8, "split": 8}
    assert len(mixed.warnings) == 1 and "'split'" in mixed.warnings[0]


def test_names_without_end_are_not_all_kept(tmp_path: Path) -> None:
    loaded = load(tmp_path, [{"prompt": "a", "completion": "b", f"c{i}": 1} for i in range(900)])
    assert len(loaded.unread.columns) == 500
    part = PartInfo(**loaded.unread.to_json(), mapping=loaded.dialect.mapping)
    (_, read), (_, rest) = column_pairs(part)
    assert read == "prompt, completion" and rest.endswith("and 492 more") and "c0 (1 of 900 rows)" in rest


ROWS = [
    {"question": f"Say {i}", "response": f"{i}", "origin": "web", "split": "train" if i else ""} for i in range(20)
]  # fmt: skip


def test_the_preview_names_them(tmp_path: Path, lab: Lab, tiny_cli) -> None:
    words = [*lab.common(tmp_path / "runs"), f"data.path={write(tmp_path / 'rows.jsonl', ROWS)}"]
    told = tiny_cli(["preview", "stage=sft", *words])
    assert told.code == 0, told.err
    assert "columns: prompt ← question, completion ← response" in told.out
    assert "not read: origin (20 of 20 rows), split (19 of 20 rows)" in told.out
    assert "warning: the column 'split' says which part of the data a row belongs to" in told.out


@pytest.mark.slow
def test_the_plan_and_the_report_name_them(tmp_path: Path, lab: Lab, tiny_cli) -> None:
    words = [*lab.common(tmp_path / "runs"), f"data.path={write(tmp_path / 'rows.jsonl', ROWS)}", "stage.max_steps=1"]
    told = tiny_cli(["stage=sft", *words])
    assert told.code == 0, told.err
    assert "not read      origin (20 of 20 rows), split (19 of 20 rows)" in told.out
    assert "warning: sft: the column 'split' says which part" in told.out
    folder = only_folder(tmp_path / "runs", "sft")
    assert read_json(folder / "plan.json")["data"]["train"]["extra_columns"] == {"origin": 20, "split": 19}
    assert any("'split'" in warning for warning in read_json(folder / "result.json")["warnings"])
    page = (folder / "report.html").read_text()
    assert "origin" in page and "which part of the data" in page
    assert "which part of the data" in (folder / "report.md").read_text()
