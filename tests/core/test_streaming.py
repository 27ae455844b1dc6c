"""Records and tokens on disk are the records and tokens in memory; what was interrupted goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

import core.tokens.cache
from core.data.dataset import load_dataset
from core.data.record_store import StoredRecords, from_line, to_line
from core.data.records import Message, Record, Span, Step
from core.errors import DataError
from core.settings.data_schema import Choice, DataConfig
from core.settings.schema import Order
from core.testing.tiny import tiny_tokenizer
from core.tokens.codec import ChatCodec
from core.tokens.encoding import ExampleMaker, tokenizer_fingerprint
from core.tokens.examples import Demonstration
from core.training.order import step_items, token_counts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def sft_rows(count: int) -> list[object]:
    """Rows of which some share a prompt, with a broken one among them."""
    rows: list[object] = [
        {"prompt": f"Say {i % 31}", "completion": f"“{i}” naïve ☕" + " long" * i} for i in range(count)
    ]
    rows.insert(count // 2, "{broken")
    return rows


def both(path: Path, schema: str, **more: object) -> tuple:
    configs = (DataConfig(stream=choice, max_bad_frac=0.5, **more) for choice in (Choice.never, Choice.always))
    return tuple(load_dataset(cfg, path, schema, seed=17) for cfg in configs)


CASES = {
    "plain": {}, "limit": {"limit": 20}, "system": {"system": "Be kind."}, "nothing held out": {"heldout_frac": 0.0},
    "few held out": {"heldout_frac": 0.5, "heldout_max": 7}, "shuffled": {"shuffle": True},
    "a fold": {"folds": 3, "fold": 2},
}  # fmt: skip


@pytest.mark.parametrize("more", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("schema", ["sft", "text", "preference"])
def test_streamed_records_are_those_in_memory(tmp_path, schema, more):
    pairs = [
        {"prompt": f"p{i % 31}", "chosen": f"good {i}", "rejected": "bad", "id": i, "split": "x"} for i in range(60)
    ]
    texts = [{"text": f"Line {i % 40}."} for i in range(60)]
    rows = {"sft": sft_rows(60), "text": texts, "preference": pairs}[schema]
    memory, disk = both(write(tmp_path / "rows.jsonl", rows), schema, **more)
    assert isinstance(disk.train, StoredRecords) and isinstance(memory.train, list)
    assert list(disk.train) == memory.train
    assert [record.meta for record in disk.train] == [record.meta for record in memory.train]
    assert list(disk.heldout) == memory.heldout and list(disk.heldout_prompts) == memory.heldout_prompts
    assert disk.info == memory.info and disk.warnings == memory.warnings
    assert disk.quarantined == memory.quarantined


def test_a_folder_with_pairs_and_a_heldout_part(tmp_path):
    pairs = [{"prompt": f"p{i % 9}", "chosen": f"good {i}", "rejected": "bad"} for i in range(30)]
    write(tmp_path / "preference.jsonl", pairs)
    write(tmp_path / "heldout.jsonl", [{"prompt": "p3", "completion": "x"}])
    memory, disk = both(tmp_path, "sft")
    assert list(disk.train) == memory.train and disk.info == memory.info
    assert memory.info.train.also_heldout > 0


def test_the_second_time_nothing_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", sft_rows(40))
    cfg = DataConfig(stream=Choice.always)
    first = load_dataset(cfg, path, "sft", 17)
    monkeypatch.setattr("core.data.dataset.load_records", lambda *_, **__: pytest.fail("read again"))
    assert list(load_dataset(cfg, path, "sft", 17).train) == list(first.train)


def test_stored_records_go_to_another_process(tmp_path):
    path = write(tmp_path / "rows.jsonl", sft_rows(20))
    train = load_dataset(DataConfig(stream=Choice.always), path, "sft", 17).train
    again = pickle.loads(pickle.dumps(train))
    assert list(again) == list(train) and again.fingerprint == train.fingerprint


def test_an_unfit_file_leaves_nothing_behind(tmp_path, cache):
    path = write(tmp_path / "rows.jsonl", [{"text": "only text"}] * 3)
    with pytest.raises(DataError, match="no record serves"):
        load_dataset(DataConfig(stream=Choice.always), path, "sft", 17)
    assert not list((cache / "records").glob("*"))


def test_a_record_survives_its_line():
    full = Record(
        prompt=(Message("user", "é\n\"q\"", 0.5, ('{"name": "f"}',), "why"), Message("assistant", "b")),
        completion="c", chosen="d", rejected="e", margin=0.1, answer="f", text="g", label=False, score=-1.5,
        weight=2.0, calls=("{}",), reasoning="h", tools=("{}",), rationale="i", spans=(Span(1, 2, "bad", "n"),),
        steps=(Step("s", 1.0), Step("t")), meta={"file": "a", "line": 3, "extra": {"k": [1, None]}},
    )  # fmt: skip
    default = Record()
    set_here = [
        field.name for field in dataclasses.fields(Record) if getattr(full, field.name) != getattr(default, field.name)
    ]
    assert set_here == [field.name for field in dataclasses.fields(Record)], "a field of Record is not tried here"
    again = from_line(to_line(full))
    assert again == full and again.key == full.key and again.meta == full.meta


# ---- tokens ---------------------------------------------------------------------------------------------------------


@dataclass
class Maker:
    """An ExampleMaker, and what it dropped and said."""

    cache: Choice
    limit: int = 200
    dropped: list[tuple[Record, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @cached_property
    def make(self) -> ExampleMaker:
        def drop(record: Record, reason: str) -> None:
            self.dropped.append((record, reason))

        codec = ChatCodec(tiny_tokenizer(), self.limit)
        return ExampleMaker(codec, self.limit, drop, self.said.append, self.cache, "sft")


@pytest.fixture
def records(tmp_path) -> list[Record]:
    path = write(tmp_path / "rows.jsonl", sft_rows(60))
    return list(load_dataset(DataConfig(heldout_frac=0), path, "sft", 17).train)


def test_cached_tokens_are_the_tokens(records, monkeypatch):
    monkeypatch.setattr(core.tokens.encoding, "SHARD_ROWS", 8)
    monkeypatch.setattr(core.tokens.cache, "SHARD_ROWS", 8)
    memory, disk, again = Maker(Choice.never), Maker(Choice.always), Maker(Choice.always)
    plain, cached = memory.make.demonstrations(records), disk.make.demonstrations(records)
    assert len(cached.shards) >= 5 and memory.dropped, "the case is too small"
    assert list(cached) == plain and cached[-1] == plain[-1] and cached[3:5] == plain[3:5]
    assert disk.dropped == memory.dropped
    assert token_counts(cached) == token_counts(plain)
    for order in Order:
        assert step_items(cached, 3, 8, 1, order) == step_items(plain, 3, 8, 1, order)
    with pytest.raises(IndexError):
        cached[len(cached)]
    monkeypatch.setattr(ChatCodec, "encode", lambda *_: pytest.fail("tokenised again"))
    assert list(again.make.demonstrations(records)) == plain
    assert again.dropped == memory.dropped, "a hit tells of refused records too"


def test_an_interrupted_tokenisation_goes_on_where_it_stopped(records, cache, monkeypatch):
    monkeypatch.setattr(core.tokens.cache, "SHARD_ROWS", 8)
    expected = Maker(Choice.never).make.demonstrations(records)
    encode, calls = ChatCodec.encode, []

    def counted(self: ChatCodec, layouts: list) -> list:
        calls.append(len(layouts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, layouts)

    monkeypatch.setattr(ChatCodec, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        Maker(Choice.always).make.demonstrations(records)
    folder = next((cache / "tokens").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["000000", "000001", "000002"]
    (folder / "000001" / "ids.npy").write_bytes(b"")  # and one shard is damaged
    calls.clear()
    calls += [0] * 4
    assert list(Maker(Choice.always).make.demonstrations(records)) == expected
    shards = -(-len(records) // 8)
    assert len(calls) - 4 == shards - 2


def test_no_damage_of_cached_tokens_is_silent(records, cache, monkeypatch):
    """200 changes of a shard's files: flipped bits, cut, longer, swapped, removed, of another record."""
    monkeypatch.setattr(core.tokens.cache, "SHARD_ROWS", 8)
    expected, wrong = Maker(Choice.never).make.demonstrations(records), []
    Maker(Choice.always).make.demonstrations(records)
    shards = sorted(next((cache / "tokens").iterdir()).iterdir())
    for number in range(200):
        draw = random.Random(number)
        shard = draw.choice(shards)
        file = draw.choice(sorted(shard.iterdir()))
        data = bytearray(file.read_bytes())
        kind = ("flipped", "cut", "longer", "removed", "moved")[number % 5]
        if kind == "flipped":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[draw.randrange(len(data)) :]
        elif kind == "longer":
            data += draw.randbytes(3)
        file.write_bytes(data)
        if kind == "removed":
            file.unlink()
        elif kind == "moved":
            other = draw.choice([one for one in shards if one != shard])
            shutil.rmtree(shard)
            shutil.copytree(other, shard)
        again = Maker(Choice.always)
        made = again.make.demonstrations(records)
        if list(made) != expected or not any("are damaged and made anew" in line for line in again.said):
            wrong.append((number, kind, file.name, again.said))
    assert wrong == []


def test_weights_and_large_ids_come_back_exactly(tmp_path):
    first, second = Demonstration([70000, 1, 2, 3], [0.0, 0.1, 0.1, -1.0], "b"), Demonstration([5, 6], [0.0, 0.0], "a")
    third = Demonstration([5, 7], [0.0, 1.0], "b")
    made = [[first], "no", [second, third]]
    shards, refused = core.tokens.cache.cached_tokens(
        tmp_path / "tokens", [Record()] * 3, lambda part: made, lambda done, count: None
    )
    assert list(shards) == [first, second, third] and refused == [(1, "no")]


def test_the_key_follows_the_template():
    codec, other = ChatCodec(tiny_tokenizer(), 100), ChatCodec(tiny_tokenizer(), 100)
    assert tokenizer_fingerprint(codec) == tokenizer_fingerprint(other)
    other.tokenizer.chat_template += " "
    assert tokenizer_fingerprint(codec) != tokenizer_fingerprint(other)
