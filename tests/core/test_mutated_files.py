"""Files of data, mutated: whatever is in them, they end in records and quarantined rows, or in an error of the user.

PREFTUNE_FUZZ_SECONDS says for how many CPU seconds files are tried, 300 when unset. The rules, each checked for every
file:

1. load_dataset returns, or raises a PreftuneError with a place and a mend; nothing else, no warning of Python.
2. Nothing takes longer than 20 CPU seconds.
3. Each row that the reader gives is a record or a quarantined row with a reason, a line within the file and valid
   Unicode, and the reason is not that a parser failed.
4. Records are whole: a prompt says something, an answer is not empty, a pair's sides differ, weights are finite,
   calls and tools are JSON objects with a name.
5. No training record has a prompt of a held-out one.
6. The same file gives the same records and warnings again, kept on disk too.
7. What is told of the set is JSON, and reads back as what it was.
8. Unread columns and keys are counted at most once for each row and message.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.data.dataset import Dataset, load_dataset
from core.data.info import DatasetInfo
from core.data.loading import load_records
from core.data.records import Record
from core.errors import PreftuneError
from core.settings.data_schema import DataConfig

ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
SEEDS: list[dict[str, Any]] = [
    {"prompt": "Hi", "completion": "Hello", "label": "good", "score": 1.5, "weight": 1},
    {"instruction": "Add", "input": "1", "output": "2", "history": [["a", "b"]], "system": "Be kind"},
    {"messages": [ASK, {**SAY, "train": False, "thinking": "Hm."}, ASK, SAY], "tools": [{"name": "f"}], "label": True},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                  {"role": "tool", "content": {"sky": "sun"}}, SAY], "split": "train"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello</s>", "mask": 0}]},
    {"prompt": "Question: say it\nAnswer: ", "chosen": "Question: say it\nAnswer: 1", "rejected": "no", "margin": "2"},
    {"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "Go<|im_end|>"}], "score_chosen": 2,
     "score_rejected": 1},
    {"question": "Where?", "context": ["The cat.", {"text": "sleeps"}], "answer": "Here"},
    {"question": "Hi?", "choices": ["a", "b"], "answer": 1, "passage": "There."},
    {"text": "Double.", "code": "x = 1", "test_list": ["assert x"], "test_setup_code": ""},
    {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1, 2, 1]},
    {"prompt": "Hi", "completion": "Helo you", "spans": [{"start": 0, "end": 4, "label": "typo"}]},
    {"prompt": "Hi", "completions": ["One.", "Two."], "labels": [True, False]},
    {"utterances": [{"speaker": "user", "text": "Hi"}, {"speaker": "assistant", "text": "Hello", "weight": 0.5}]},
    {"prompt": "Hi", "response_a": "Hello", "response_b": "Go", "winner": "a"},
    {"text": "A raw text of several words.", "category": "greeting"},
    {"prompt": [ASK], "completion": [SAY], "images": []},
]  # fmt: skip
VALUES: list[Any] = [
    None, "", [], {}, 0, 1, -1, 2.5, float("nan"), float("inf"), 10**400, True, False, "good", "bad", "maybe", "</s>",
    "\ud800", "\0", "é☕", "[[", '{"a": 1}', "Human: a\n\nAssistant: b", ["a", "b"], [["a", "b"]], [["a"]], [{}], [ASK],
    [ASK, SAY], [SAY, ASK, SAY], {"role": "tool", "content": {}}, [[ASK]], {"text": "x"}, "x" * 3000, [None],
    {"a": {"b": [1]}}, "<think>\na\n</think>\n\nb",
]  # fmt: skip
KEYS = [
    *sorted({key for seed in SEEDS for key in seed}), "train", "mask", "loss", "image", "documents", "reasoning",
    "role", "content", "value", "from", "tool_calls", "type", "test", "validation", "data", "", "Prompt", " prompt",
    "é",
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """A value with something changed, somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        made = dict(value)
        key = draw.choice(sorted(made))
        match draw.randrange(5):
            case 0:
                del made[key]
            case 1:
                made[draw.choice(KEYS)] = made.pop(key)
            case 2:
                made[draw.choice(KEYS)] = draw.choice(VALUES)
            case _:
                made[key] = mutated(made[key], draw)
        return made
    if isinstance(value, list) and value and draw.random() < 0.8:
        made_list = list(value)
        place = draw.randrange(len(made_list))
        match draw.randrange(5):
            case 0:
                del made_list[place]
            case 1:
                made_list.insert(place, draw.choice(VALUES))
            case 2:
                made_list = made_list * 2
            case _:
                made_list[place] = mutated(made_list[place], draw)
        return made_list
    if isinstance(value, str) and draw.random() < 0.3:
        return draw.choice([value + value, value[:1], f"{value}</s>", value.upper(), f" {value} ", json.dumps(value)])
    return draw.choice(VALUES)


def rows_of(draw: random.Random) -> list[Any]:
    """Rows of one layout, most of them whole, with numbers that tell them apart."""
    seed = draw.choice(SEEDS)
    rows: list[Any] = []
    for number in range(draw.randrange(1, 30)):
        row = json.loads(json.dumps(seed).replace("Hi", f"Hi {number % 9}"))
        for _ in range(draw.choice([0, 0, 0, 0, 1, 1, 2, 5])):
            row = mutated(row, draw)
        rows.append(row)
    if draw.random() < 0.2:
        rows.insert(draw.randrange(len(rows) + 1), mutated(draw.choice(SEEDS), draw))
    return rows


def as_jsonl(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_parts(rows: list[Any]) -> bytes:
    return json.dumps(
        {"train": rows[: len(rows) // 2 + 1], "test": rows[len(rows) // 2 + 1 :], "by": {"a": 1}}
    ).encode()


def as_keyed(rows: list[Any]) -> bytes:
    return json.dumps({f"row {place}": row for place, row in enumerate(rows)}).encode()


def as_table(mark: str) -> Callable[[list[Any]], bytes]:
    def write(rows: list[Any]) -> bytes:
        known = [row for row in rows if isinstance(row, dict)]
        names = list(dict.fromkeys(name for row in known for name in row))
        cells = [names, *([_cell(row.get(name)) for name in names] for row in known)]
        return "\n".join(mark.join(f'"{cell}"' for cell in row) for row in cells).encode("utf-8", "surrogatepass")

    return write


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text.replace('"', '""')


def as_xml(rows: list[Any]) -> bytes:
    from xml.sax.saxutils import escape

    parts = []
    for row in rows:
        cells = row.items() if isinstance(row, dict) else ()
        parts.append("".join(f"<{key}>{escape(str(cell))}</{key}>" for key, cell in cells if str(key).isidentifier()))
    return ("<rows>" + "".join(f"<row>{part}</row>" for part in parts) + "</rows>").encode("utf-8", "surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), file)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
        return as_jsonl(rows)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.jsonl": as_jsonl, "b.json": as_json, "c.json": as_parts, "d.json": as_keyed, "e.csv": as_table(","),
    "f.tsv": as_table("\t"), "g.xml": as_xml, "h.parquet": as_parquet, "i.txt": as_jsonl, "j.md": as_json,
    "k.jsonl": as_parts,
}  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, or put in; most files stay as they are."""
    for _ in range(draw.choice([0, 0, 0, 1, 1, 3])):
        at = draw.randrange(len(content) + 1)
        to = min(len(content), at + draw.choice([1, 1, 2, 20, 200]))
        put = draw.choice(
            [b"", b"\n", b"\xff", b"\0", b'"', b"[", b"}", b",", b"\r\n", b"\xef\xbb\xbf", content[at:to] * 3]
        )
        content = content[:at] + put + content[to if draw.random() < 0.6 else at :]
    return content


def check_whole(record: Record) -> None:
    assert record.prompt or record.text is not None
    if record.prompt:
        assert any(turn.content.strip() for turn in record.prompt if turn.role in ("user", "tool"))
    if record.completion is not None:
        assert record.completion.strip() or record.calls
    if record.chosen is not None:
        assert record.rejected is not None and record.chosen.strip() != record.rejected.strip()
        assert record.chosen.strip() and record.rejected.strip()
    for turn in record.turns():
        assert turn.weight is None or math.isfinite(turn.weight)
        assert all(isinstance(json.loads(call)["name"], str) for call in turn.calls)
        assert turn.role == "assistant" or not (turn.calls or turn.reasoning)
    assert all(isinstance(json.loads(tool)["name"], str) for tool in record.tools)
    assert all(number is None or math.isfinite(number) for number in (record.margin, record.score, record.weight))
    assert len(record.key) == 64
    json.dumps(record.meta, allow_nan=True)


def check_set(data: Dataset, path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).count(b"\n") if path.suffix == ".gz" else path.read_bytes().count(b"\n")
    for row in data.quarantined:
        assert row.reason and " fails: " not in row.reason, row
        assert row.line >= 1 and (path.name.startswith("h.") or row.line <= lines + 1), row
        row.reason.encode()
        row.row.encode()
    held = {record.prompt_key for record in (*data.heldout, *data.heldout_prompts)}
    for record in data.train:
        assert record.prompt_key not in held
    for record in (*data.train, *data.heldout, *data.heldout_prompts):
        check_whole(record)
    told = json.loads(json.dumps(data.info.to_json()))
    assert DatasetInfo.from_json(told).to_json() == told
    rows = data.info.train.rows or 0
    assert all(0 < count <= rows for count in (data.info.train.extra_columns or {}).values())


def tried(path: Path, schema: str, seed: int) -> tuple[Any, ...]:
    """What comes of a file, in memory and on disk; the rules are checked."""
    began = time.process_time()
    found: list[Any] = []
    for stream in ("never", "always"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                data = load_dataset(DataConfig(stream=stream, max_bad_frac=1.0), path, schema, seed)
        except PreftuneError as error:
            assert error.what and error.where and error.mend, error
            found.append((type(error).__name__, error.what))
            continue
        check_set(data, path)
        found.append((data.info.fingerprint, data.warnings, [str(row) for row in data.quarantined]))
    assert found[0] == found[1]
    assert time.process_time() - began < 20
    return tuple(found[0])


def check_rows(path: Path, rows: list[Any]) -> None:
    """Nothing of an undamaged list of rows is lost."""
    try:
        loaded = load_records([path], max_bad_frac=1)
    except PreftuneError:
        return
    parts = sum(record.meta.get("part", 0) > 0 for record in loaded.records)
    assert len(loaded.records) + len(loaded.heldout) - parts + len(loaded.quarantined) == len(rows)


def fuzz(folder: Path, seconds: float, seed: int) -> dict[str, int]:
    """Try files for so many CPU seconds; how many ended how."""
    draw = random.Random(seed)
    counts = {"files": 0, "read": 0, "refused": 0}
    until = time.process_time() + seconds
    while time.process_time() < until:
        rows = rows_of(draw)
        name = draw.choice(sorted(WRITERS))
        whole = WRITERS[name](rows)
        content = damaged(whole, draw)
        packed = draw.random() < 0.1
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(damaged(gzip.compress(content), draw) if packed and draw.random() < 0.3 else
                         gzip.compress(content) if packed else content)  # fmt: skip
        try:
            end = tried(
                path, draw.choice(["sft", "preference", "prompts", "text", "corpus", "feedback"]), draw.randrange(99)
            )
            if content == whole and not packed and name in ("a.jsonl", "b.json"):
                check_rows(path, rows)
        except BaseException:
            (folder / f"found-{name}").write_bytes(content)
            print(f"seed {seed}, file {counts['files']}: {name}, {content[:2000]!r}")
            raise
        counts["files"] += 1
        counts["refused" if end[0].endswith("Error") else "read"] += 1
        path.unlink()
    return counts


def test_some_mutated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    counts = fuzz(tmp_path, 2.0, seed=1)
    assert counts["read"] and counts["refused"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_mutated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    counts = fuzz(tmp_path, float(os.environ.get("PREFTUNE_FUZZ_SECONDS", "300")), seed=random.randrange(10**6))
    with capsys.disabled():
        print(f"\n{counts}")
    assert counts["read"] > counts["refused"] / 5
