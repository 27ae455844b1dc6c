"""Readers: formats, line numbers, damage; and that no row is lost whatever the bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.dataset import load_dataset
from core.data.dialects import BUILT_IN
from core.data.dialects.fields import ALIASES
from core.data.loading import Loaded, load_records
from core.data.readers import BUILT_IN_READERS
from core.data.records import Message
from core.errors import ConfigError, DataError
from core.platform.specs import DialectSpec
from core.settings.data_schema import DataConfig

ROWS = [{"prompt": f"p{i}", "completion": "é"} for i in range(3)]


def rows_of(path: Path) -> list[tuple]:
    return [(row.line, row.value if row.fault is None else row.fault) for row in BUILT_IN_READERS.rows(path)]


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
    "object.json": (json.dumps({str(i): row for i, row in enumerate(ROWS)}, indent=1), [2, 6, 10]),
    "wrapped.json": (json.dumps({"version": {"a": [1]}, "data": ROWS, "n": 1}, indent=1), [8, 12, 16]),
    "packed.jsonl.gz": (gzip.compress(JSONL.encode()), [1, 2, 3]),
    "packed.json.gz": (gzip.compress(json.dumps(ROWS).encode()), [1, 1, 1]),
    "packed.jsonl.zst": (zstd.compress(JSONL.encode()), [1, 2, 3]),
    "packed.json.zst": (zstd.compress(json.dumps(ROWS, indent=1).encode()), [2, 6, 10]),
    "rows.xml": (
        "<all>"
        + "".join(f"\n<row>\n<prompt>p{i}</prompt><completion>é</completion></row>" for i in range(3))
        + "</all>",
        [2, 4, 6],
    ),
    "table.csv": ("prompt,completion\np0,é\n\np1,é\r\np2,é", [2, 4, 5]),
    "table.tsv": ("\ufeffprompt\tcompletion\np0\té\np1\té\np2\té\n", [2, 3, 4]),
}


@pytest.mark.parametrize("name", FORMS)
def test_formats_give_the_same_rows(tmp_path: Path, name: str) -> None:
    content, lines = FORMS[name]
    path = put(tmp_path / name, content)
    assert BUILT_IN_READERS.reads(path)
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


def test_documents_are_one_text(tmp_path: Path) -> None:
    assert rows_of(put(tmp_path / "a.md", "# One\n\ntwo\n")) == [(1, {"text": "# One\n\ntwo\n"})]
    assert rows_of(put(tmp_path / "a.md", b"\xff")) == [(1, "not UTF-8")]


def test_the_first_line_may_be_data(tmp_path: Path) -> None:
    quiz = 'What is it?,1,2,3,4,B\n"Is ""it"", this?",a,b,c,d,A\n'
    assert [(line, list(row), list(row.values())) for line, row in rows_of(put(tmp_path / "a.csv", quiz))] == [
        (1, [f"column_{i}" for i in range(1, 7)], ["What is it?", "1", "2", "3", "4", "B"]),
        (2, [f"column_{i}" for i in range(1, 7)], ['Is "it", this?', "a", "b", "c", "d", "A"]),
    ]
    loaded = load_records([tmp_path / "a.csv"])
    assert [record.answer for record in loaded.records] == ["B", "A"]
    for header in (
        "prompt,1st note",
        ",prompt,answer",
        "Frage,Antwort",
        "What was asked (or said),answer",
        "#id,question",
    ):
        first = next(
            iter(BUILT_IN_READERS.rows(put(tmp_path / "b.csv", f"{header}\n" + "x," * header.count(",") + "y")))
        )
        assert (first.line, list(first.value)) == (2, header.split(","))


def test_tsv_takes_quotes_of_either_kind(tmp_path: Path) -> None:
    content = (
        "prompt\tcompletion\n"
        '"It" is\ta word\n'  # not quoted at all
        '"two\nlines"\t"a ""b"""\n'
        'open\t"quote\n'
        "plain\trow\n"
        "three\tcells\there\n"
        '"never\nclosed\n'
        "last\trow\n"
    )
    assert rows_of(put(tmp_path / "a.tsv", content)) == [
        (2, {"prompt": '"It" is', "completion": "a word"}),
        (3, {"prompt": "two\nlines", "completion": 'a "b"'}),
        (5, {"prompt": "open", "completion": '"quote'}),
        (6, {"prompt": "plain", "completion": "row"}),
        (7, "wrong number of cells: 3, the header has 2"),
        (8, "wrong number of cells: 1, the header has 2"),
        (9, "wrong number of cells: 1, the header has 2"),
        (10, {"prompt": "last", "completion": "row"}),
    ]


def test_chain_of_thought_tables(tmp_path: Path) -> None:
    line = "What is 1+1?\\nOptions:\\n(A) 2\t(A)\tOne and one.\\nTwo.\n"
    record = load_records([put(tmp_path / "a.tsv", line * 3)]).records[0]
    assert record.prompt[0].content == "What is 1+1?\nOptions:\n(A) 2"
    assert record.completion == "One and one.\nTwo.\nThe answer is (A)."
    assert (record.answer, record.rationale) == ("(A)", "One and one.\nTwo.")


def test_xml_rows_are_found_by_their_text(tmp_path: Path) -> None:
    content = """<?xml version="1.0"?>
    <Document id="1"><Focus>A thing</Focus>
      <CUIs><CUI>C0001206</CUI><CUI>C0001207</CUI></CUIs>
      <QAPairs>
        <QAPair pid="1"><Question qtype="about">What is &lt;it&gt; ?</Question>
          <Answer>It is a <![CDATA[<thing>]]>.</Answer></QAPair>
        <QAPair pid="2"><Question qtype="about">And this ?</Question><Answer></Answer></QAPair>
      </QAPairs></Document>"""
    assert rows_of(put(tmp_path / "a.xml", content)) == [
        (5, {"Question": "What is <it> ?", "Answer": "It is a <thing>.", "pid": "1", "qtype": "about"}),
        (7, {"Question": "And this ?", "Answer": "", "pid": "2", "qtype": "about"}),
    ]
    texts = "<a><b>one text</b><b>another one</b></a>"
    assert rows_of(put(tmp_path / "a.xml", texts)) == [(1, {"text": "one text"}), (1, {"text": "another one"})]
    assert rows_of(put(tmp_path / "a.xml", "<a><b>C1</b><b>C2</b></a>")) == []


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a><b>&x;</b><b>&x; x</b></a>'


@pytest.mark.parametrize("content", [BOMB, FILE, "<a>" * 300 + "</a>" * 300, "<a><b></a>", "", "<a/><b/>", "\xff<a/>"])
def test_xml_that_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="not XML that can be read") as error:
        rows_of(put(tmp_path / "a.xml", content))
    assert "a.xml:" in error.value.where


def test_damaged_zst_is_refused(tmp_path: Path) -> None:
    packed = zstd.compress(JSONL.encode() * 100)
    for content in (packed[:-20], b"no zst", packed[:20] + b"x" + packed[21:], packed + b"more"):
        with pytest.raises(DataError, match="ends early or is damaged") as error:
            load_records([put(tmp_path / "a.jsonl.zst", content)], max_bad_frac=1)
        assert "a.jsonl.zst" in error.value.where


def test_folders_below_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a/deep/one.jsonl", ".git/no.jsonl", "README.md", "empty.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        put(tmp_path / name, "" if name.startswith("empty") else JSONL)
    put(tmp_path / "b" / "names.json", '["one"]')
    data = load_dataset(DataConfig(heldout_frac=0.0, max_bad_frac=0.2), tmp_path, "sft", 0)
    assert data.info.train.files == ["a/deep/one.jsonl", "b/two.jsonl"]
    assert [str(row) for row in data.quarantined] == ["b/names.json:1: not an object"]
    data = load_dataset(DataConfig(heldout_frac=0.0), tmp_path / "**" / "t*.jsonl", "sft", 0)
    assert data.info.train.files == ["two.jsonl"]
    with pytest.raises(ConfigError, match="no file of records matches"):
        load_dataset(DataConfig(), tmp_path / "*.pdf", "sft", 0)
    (tmp_path / "docs").mkdir()
    put(tmp_path / "docs" / "one.md", "# One")
    put(tmp_path / "docs" / "two.md", "# Two")
    data = load_dataset(DataConfig(heldout_frac=0.0), tmp_path / "docs", "text", 0)
    assert [record.text for record in data.train] == ["# One", "# Two"]


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
        load_records([put(tmp_path / "a.pdf", "%PDF")])


def test_deep_nesting_and_long_numbers_are_bad_rows(tmp_path: Path) -> None:
    bad = [
        "[" * 100_000,
        '{"prompt": ' + "9" * 5000 + "}",
        '{"prompt": "p", "completion": ' + "[" * 990 + "]" * 990 + "}",
    ]
    loaded = load_records([put(tmp_path / "a.jsonl", JSONL + "\n".join(bad))], max_bad_frac=0.5)
    assert (len(loaded.records), len(loaded.quarantined)) == (3, 3)


FIELDS = sorted({*(alias for names in ALIASES.values() for alias in names), "role", "from", "content", "value", "type",
                 "text", "speaker", "annotations", "name", "function", "arguments", "tool_calls", "start", "end",
                 "problem", "rating", "weight", "Best Answer"})  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "gpt", "assistant", "tool", "function_call", '{"name": "f"}', "[]", "A", "1", "#### 2"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
GOOD = {"prompt": "a prompt", "chosen": "good", "rejected": "bad", "margin": 0.5}


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(VALUES, max_size=12), at=st.integers(0, 12), columns=st.booleans())
def test_any_json_is_a_record_or_a_bad_row(rows: list, at: int, columns: bool) -> None:
    rows = rows[:at] + [GOOD] * (len(rows) + 1) + rows[at:]
    named = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"} if columns else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("a.jsonl", "\n".join(map(json.dumps, rows))), ("a.json", json.dumps(rows))):
            loaded = load_records([put(Path(folder) / name, text)], named, max_bad_frac=1)
            check_rows(loaded, len(rows))
            good = (Message("user", "a prompt"),)
            assert sum(record.prompt[:1] == good for record in loaded.records) >= rows.count(GOOD)


def check_rows(loaded: Loaded, count: int) -> None:
    """Every row is a record, several of them, or a bad row with a reason that a parser gave."""
    parts = sum(record.meta.get("part", 0) > 0 for record in loaded.records)
    assert len(loaded.records) - parts + len(loaded.quarantined) == count
    assert all(row.reason and " fails: " not in row.reason for row in loaded.quarantined)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(VALUES, min_size=1, max_size=6))
def test_json_alone_raises_data_errors_only(rows: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = load_records([put(Path(folder) / "a.json", json.dumps(rows))], max_bad_frac=1)
        except DataError as error:
            assert error.where
        else:
            check_rows(loaded, len(rows))


@st.composite
def near_rows(draw: st.DrawFn, spec: DialectSpec) -> list[dict]:
    """Rows with the columns of a dialect and values of all kinds, the right ones among them."""
    names = [*spec.required, *spec.optional]
    columns = [draw(st.sampled_from(spec.aliases.get(name) or ALIASES[name])) for name in names]
    return draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, VALUES | SHAPES)), min_size=1, max_size=6))


SHAPES = st.sampled_from([
    "Hi", 1, "B", ["a", "b"], [1, 2], [True], [{"name": "f"}], {"problem": "Hi"}, [{"text": "a", "label": 1}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}], [{"from": "gpt", "value": "Yes"}],
    {"errors": [{"start": 0, "end": 1}]}, [{"start": 0, "end": 1, "label": "x"}], [{"input": "", "output": "x"}],
    [{"speaker": "user", "text": "Hi"}, {"speaker": "agent", "text": "Yes"}], [[{"role": "user", "content": "Hi"}]],
    [{"response": "a", "score": 1}, {"response": "b", "score": 2}], {"text": ["a", "b"], "label": ["A", "B"]},
    {"steps": [{"completions": [{"text": "a", "rating": 1}]}]},
    '[{"role": "user", "text": "Hi"}]', '{"role": "agent", "text": "Yes"}',
])  # fmt: skip


@pytest.mark.parametrize("spec", BUILT_IN, ids=lambda spec: spec.name)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rows_of_the_right_columns_are_records_or_bad_rows(spec: DialectSpec, data: st.DataObject) -> None:
    rows = data.draw(near_rows(spec))
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder) / "a.jsonl", "\n".join(map(json.dumps, rows)))
        for wanted in (None, spec.name):
            try:
                loaded = load_records([path], max_bad_frac=1, dialect=wanted)
            except DataError as error:
                assert error.where and " fails: " not in str(error)
            else:
                check_rows(loaded, len(rows))


NAMES = [f"a{suffix}" for suffix in BUILT_IN_READERS.by_suffix] + ["a.jsonl.gz", "a.csv.zst"]
TEXTS = st.text(alphabet='[]{}",:\n\r\t ab1\\<>/&;=!?', max_size=60)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60) | TEXTS, name=st.sampled_from(NAMES))
def test_any_bytes_raise_data_errors_only(content: bytes | str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_records([put(Path(folder) / name, content)], max_bad_frac=1)
        except (DataError, ConfigError) as error:
            assert error.where and " fails: " not in str(error)


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(st.lists(TEXTS.filter(str.strip), min_size=2, max_size=2), min_size=1, max_size=6),
    tabs=st.booleans(),
)
def test_no_written_cell_is_lost(cells: list[list[str]], tabs: bool) -> None:
    """What Python's writer of CSV writes is read as it was, also as TSV; a TSV cell that spans lines too."""
    written = io.StringIO(newline="")
    if tabs:  # in TSV a tab inside of a quoted cell cannot be told from one between cells
        cells = [[cell.replace("\t", " ") for cell in row] for row in cells]
    csv.writer(written, delimiter="\t" if tabs else ",").writerows([["prompt", "completion"], *cells])
    with tempfile.TemporaryDirectory() as folder:
        rows = list(BUILT_IN_READERS.rows(put(Path(folder) / ("a.tsv" if tabs else "a.csv"), written.getvalue())))
    assert [list(row.value.values()) for row in rows if row.fault is None] == cells


@settings(max_examples=100, deadline=None)
@given(junk=st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=6), at=st.integers(0, 6))
def test_good_lines_survive_any_bytes_around_them(junk: list[bytes], at: int) -> None:
    good = [json.dumps({**GOOD, "prompt": f"{i}"}).encode() for i in range(8)]
    lines = [*good[:4], *junk[:at], *good[4:], *junk[at:]]
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_records([put(Path(folder) / "a.jsonl", b"\n".join(lines))], max_bad_frac=1)
    numbers = {record.meta["line"] for record in loaded.records}
    assert {number for number, line in enumerate(lines, start=1) if line in good} <= numbers
