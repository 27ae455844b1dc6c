"""Readers: formats, line numbers, damage; and that no row is lost whatever the bytes."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset import load_records
from core.errors import ConfigError, DataError
from core.readers import is_data_file, read_rows
from core.records import Message

ROWS = [{"prompt": f"p{i}", "completion": "é"} for i in range(3)]


def rows_of(path: Path) -> list[tuple]:
    return [(row.line, row.value if row.fault is None else row.fault) for row in read_rows(path)]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FORMS = {
    "lines.jsonl": (JSONL, [1, 2, 3]),
    "lines.json": (JSONL, [1, 2, 3]),
    "bom.jsonl": ("\ufeff" + JSONL, [1, 2, 3]),
    "bom.json": ("\ufeff" + json.dumps(ROWS, indent=1), [2, 6, 10]),
    "crlf.jsonl": (JSONL.replace("\n", "\r\n"), [1, 2, 3]),
    "gaps.ndjson": ("\n" + JSONL.replace("\n", "\n\n"), [2, 4, 6]),
    "unended.jsonl": (JSONL.rstrip(), [1, 2, 3]),
    "list.json": (json.dumps(ROWS, ensure_ascii=False), [1, 1, 1]),
    "misnamed.jsonl": (json.dumps(ROWS, indent=2), [2, 6, 10]),
    "object.json": (json.dumps({str(i): row for i, row in enumerate(ROWS)}), [1, 2, 3]),
    "wrapped.json": (json.dumps({"version": 1, "data": ROWS}), [1, 2, 3]),
    "packed.jsonl.gz": (gzip.compress(JSONL.encode()), [1, 2, 3]),
    "packed.json.gz": (gzip.compress(json.dumps(ROWS).encode()), [1, 1, 1]),
    "table.csv": ("prompt,completion\np0,é\n\np1,é\r\np2,é", [2, 4, 5]),
    "table.tsv": ("\ufeffprompt\tcompletion\np0\té\np1\té\np2\té\n", [2, 3, 4]),
}


@pytest.mark.parametrize("name", FORMS)
def test_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    content, lines = FORMS[name]
    path = put(tmp_path / name, content)
    assert is_data_file(path)
    assert rows_of(path) == list(zip(lines, ROWS, strict=True))


def test_one_object_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    pair = {"chosen": {"role": "assistant", "content": "a"}, "rejected": {"role": "assistant", "content": "b"}}
    assert rows_of(put(tmp_path / "a.json", json.dumps(row, indent=1))) == [(1, row)]
    assert rows_of(put(tmp_path / "a.jsonl", json.dumps(pair))) == [(1, pair)]


def test_text_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = put(tmp_path / "a.txt", b"\xef\xbb\xbfone \r\n\n\xff\nthree")
    assert rows_of(path) == [(1, {"text": "one "}), (3, "not UTF-8"), (4, {"text": "three"})]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == list(enumerate(ROWS, start=1))
    for content in (b"", b"PAR1 no table PAR1"):
        with pytest.raises(DataError, match="not a readable Parquet"):
            rows_of(put(tmp_path / "b.parquet", content))


def test_csv_faults(tmp_path: Path) -> None:
    content = b'prompt,completion\n"a\nb",c\nonly\nd,\xff\n"e" f,g\nh,i,j\n"k ""l""",m\n'
    rows = rows_of(put(tmp_path / "a.csv", content))
    assert [line for line, _ in rows] == [2, 4, 5, 6, 7, 8]
    assert rows[0][1] == {"prompt": "a\nb", "completion": "c"}
    assert rows[1][1] == "wrong number of cells: 1, the header has 2"
    assert rows[2][1] == "not UTF-8"
    assert rows[3][1].startswith("not CSV")
    assert rows[4][1] == "wrong number of cells: 3, the header has 2"
    assert rows[5][1] == {"prompt": 'k "l"', "completion": "m"}
    with pytest.raises(DataError, match="never closed") as error:
        rows_of(put(tmp_path / "b.csv", 'prompt,completion\na,b\n"c,d\ne,f\n'))
    assert error.value.where.endswith("b.csv:3")
    with pytest.raises(DataError, match="no distinct columns"):
        rows_of(put(tmp_path / "c.csv", "a,a\nb,c\n"))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
def test_empty_files_are_named(tmp_path: Path, name: str) -> None:
    for content in (b"", b"\xef\xbb\xbf", b"\n \n"):
        path = put(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
        with pytest.raises(DataError, match="no rows") as error:
            load_records([path])
        assert name in error.value.where
        assert error.value.mend


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        load_records([put(tmp_path / "a.json", "[ ]")])


@pytest.mark.parametrize("end", ["", ",", ', {"prompt": "x', ', {"prompt": "x"} {}]', "] []"])
def test_a_broken_json_list_is_refused_with_its_line(tmp_path: Path, end: str) -> None:
    text = json.dumps(ROWS, indent=1).rstrip("\n]") + end
    with pytest.raises(DataError, match="ends early or is broken") as error:
        load_records([put(tmp_path / "a.json", text)])
    assert "a.json:" in error.value.where


def test_a_broken_last_line_of_json_lines_is_one_bad_row(tmp_path: Path) -> None:
    loaded = load_records([put(tmp_path / "a.jsonl", JSONL[:-9])], max_bad_frac=0.5)
    assert (len(loaded.records), loaded.quarantined[0].line) == (2, 3)
    assert loaded.quarantined[0].reason.startswith("not JSON")


def test_a_list_of_json_keeps_the_rows_around_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    text = json.dumps(ROWS, indent=1).encode().replace(b"p1", b"p\xff")
    loaded = load_records([put(tmp_path / "a.json", text)], max_bad_frac=0.5)
    assert len(loaded.records) == 2
    assert (loaded.quarantined[0].line, loaded.quarantined[0].reason) == (6, "not UTF-8")


def test_damaged_gzip_and_unknown_formats(tmp_path: Path) -> None:
    packed = gzip.compress(JSONL.encode() * 100)
    for content in (packed[:-20], b"no gzip", packed[:20] + b"x" + packed[21:]):
        with pytest.raises(DataError) as error:
            load_records([put(tmp_path / "a.jsonl.gz", content)], max_bad_frac=1)
        assert "a.jsonl.gz" in error.value.where
    with pytest.raises(DataError, match="no reader"):
        load_records([put(tmp_path / "a.xml", "<a/>")])


def test_deep_nesting_and_long_numbers_are_bad_rows(tmp_path: Path) -> None:
    bad = [
        "[" * 100_000,
        '{"prompt": ' + "9" * 5000 + "}",
        '{"prompt": "p", "completion": ' + "[" * 990 + "]" * 990 + "}",
    ]
    loaded = load_records([put(tmp_path / "a.jsonl", JSONL + "\n".join(bad))], max_bad_frac=0.5)
    assert (len(loaded.records), len(loaded.quarantined)) == (3, 3)


FIELDS = [
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "text",
    "answer",
    "label",
    "score",
    "role",
    "content",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
GOOD = {"prompt": "a prompt", "chosen": "good", "rejected": "bad", "margin": 0.5}


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(VALUES, max_size=12), at=st.integers(0, 12), columns=st.booleans())
def test_any_json_is_a_record_or_a_bad_row(rows: list, at: int, columns: bool) -> None:
    rows = rows[:at] + [GOOD] * (len(rows) + 1) + rows[at:]
    named = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"} if columns else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("a.jsonl", "\n".join(map(json.dumps, rows))), ("a.json", json.dumps(rows))):
            loaded = load_records([put(Path(folder) / name, text)], named, max_bad_frac=1)
            assert len(loaded.records) + len(loaded.quarantined) == len(rows)
            good = (Message("user", "a prompt"),)
            assert sum(record.prompt[:1] == good for record in loaded.records) >= rows.count(GOOD)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(VALUES, min_size=1, max_size=6))
def test_json_alone_raises_data_errors_only(rows: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = load_records([put(Path(folder) / "a.json", json.dumps(rows))], max_bad_frac=1)
        except DataError as error:
            assert error.where
        else:
            assert len(loaded.records) + len(loaded.quarantined) == len(rows)


NAMES = ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.jsonl.gz"]


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=60) | st.text(alphabet='[]{}",:\n\r\t ab1\\', max_size=40), name=st.sampled_from(NAMES)
)
def test_any_bytes_raise_data_errors_only(content: bytes | str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_records([put(Path(folder) / name, content)], max_bad_frac=1)
        except (DataError, ConfigError) as error:
            assert error.where


@settings(max_examples=100, deadline=None)
@given(junk=st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=6), at=st.integers(0, 6))
def test_good_lines_survive_any_bytes_around_them(junk: list[bytes], at: int) -> None:
    good = [json.dumps({**GOOD, "prompt": f"{i}"}).encode() for i in range(8)]
    lines = [*good[:4], *junk[:at], *good[4:], *junk[at:]]
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_records([put(Path(folder) / "a.jsonl", b"\n".join(lines))], max_bad_frac=1)
    numbers = {record.meta["line"] for record in loaded.records}
    assert {number for number, line in enumerate(lines, start=1) if line in good} <= numbers
