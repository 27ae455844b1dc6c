"""Readers and dialects of plugins, and what the plan and the report say of rows that were left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data.dataset import load_dataset
from core.data.formats import formats_of
from core.errors import ConfigError, DataError, PluginError
from core.platform.registry import Registry
from core.settings.data_schema import DataConfig

PLUGIN = """
    from core.api import DialectSpec, ReaderSpec, Row, RowError, Message, hookimpl, to_text

    def read(file, path):
        for number, line in enumerate(file, start=1):
            key, _, value = line.decode().partition("=")
            yield Row(number, {"ask": key, "say": value.strip()}, None if value else "no '='")

    def parse(values):
        if values["say"] == "crash":
            raise KeyError("x")
        if values["say"] == "no":
            raise RowError("says no", "say")
        return {"prompt": (Message("user", to_text(values["ask"], "ask")),), "completion": values["say"]}

    @hookimpl
    def register_readers():
        return [ReaderSpec("pairs", (".pairs",), "{module}:{function}", "key=value"{more})]

    @hookimpl
    def register_dialects():
        return [DialectSpec("ask_say", {{"ask": {test}, "say": {test}}}, parse, "asks and says")]
"""


def source(function: str = "read", more: str = "", test: str = "bool", module: str = "{module}") -> str:
    text = PLUGIN.replace('"key=value"{more}', f'"key=value"{more}').replace("{test}", test)
    return text.replace("{{", "{").replace("}}", "}").replace("{module}:{function}", f"{module}:{function}")


@pytest.fixture
def plugin(no_builtins, make_distribution, monkeypatch):
    """Installs the plugin; `impl` names its own module."""

    def make(text: str) -> Registry:
        module = make_distribution("acme", text.replace('"{module}:', '__name__ + ":'))
        registry = Registry.load(strict=False)
        assert next(record for record in registry.plugins if record.owner.plugin == "acme").module == module
        return registry

    return make


def test_a_plugin_adds_a_format_and_a_layout(plugin, tmp_path: Path) -> None:
    registry = plugin(source())
    record = next(record for record in registry.plugins if record.owner.plugin == "acme")
    assert (record.state, record.adds) == ("loaded", ["dialect ask_say", "reader .pairs"])
    path = tmp_path / "rows.pairs"
    path.write_text("Hi=Hello\nnothing\nHo=no\nHe=crash\nHa=Hu\n")
    cfg = DataConfig(heldout_frac=0.0, max_bad_frac=0.7)
    data = load_dataset(cfg, path, "sft", 0, formats_of(registry))
    assert [(row.prompt[0].content, row.completion) for row in data.train] == [("Hi", "Hello"), ("Ha", "Hu")]
    assert [(row.line, row.reason) for row in data.quarantined] == [
        (2, "no '='"), (3, "says no"), (4, "'ask_say' fails: KeyError: 'x'"),
    ]  # fmt: skip
    assert (data.info.train.dialect, data.info.quarantined) == ("ask_say", 3)
    with pytest.raises(DataError, match="no reader"):
        load_dataset(cfg, path, "sft", 0)


def test_dialects_of_plugins_come_first(plugin, tmp_path: Path) -> None:
    registry = plugin(source())
    assert [spec.name for spec in formats_of(registry).dialects][:2] == ["ask_say", "preference"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ask": "Hi", "say": "Hello", "text": "more"}) + "\n")
    assert load_dataset(DataConfig(), path, "sft", 0, formats_of(registry)).info.train.dialect == "ask_say"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (source(test="'bool'"), "'ask' is no function"),
        (source().replace('(".pairs",)', '("pairs",)'), "suffixes is"),
        (source().replace('{"ask": bool, "say": bool}', "{}"), "every row would fit"),
        (source().replace('"asks and says"', '"", {"x": ("y",)}'), "aliases names 'x'"),
        (source().replace('"asks and says"', '"", named=True'), "named=True asks for the columns"),
    ],
)
def test_specs_that_cannot_work_leave_the_plugin_out(plugin, text: str, reason: str) -> None:
    [warning] = plugin(text).warnings
    assert reason in warning


@pytest.mark.parametrize(
    ("old", "new", "label"), [(".pairs", ".csv", "reader .csv"), ("ask_say", "alpaca", "dialect alpaca")]
)
def test_built_in_names_are_taken(plugin, old: str, new: str, label: str) -> None:
    [clash] = plugin(source().replace(old, new)).clashes
    assert label in clash.what and "plugin 'core' of preftune" in clash.what


def test_a_reader_that_fails_is_named(plugin, tmp_path: Path) -> None:
    path = tmp_path / "rows.pairs"
    path.write_bytes(b"\xff")
    registry = plugin(source())
    with pytest.raises(DataError, match="the reader 'pairs' fails: UnicodeDecodeError"):
        load_dataset(DataConfig(), path, "sft", 0, formats_of(registry))


def test_a_reader_that_is_not_there_is_named(plugin, tmp_path: Path) -> None:
    path = tmp_path / "rows.pairs"
    path.write_text("Hi=Hello")
    registry = plugin(source(more=', requires=("not_a_package",)'))
    with pytest.raises(ConfigError, match="needs the package 'not_a_package'"):
        load_dataset(DataConfig(), path, "sft", 0, formats_of(registry))


def test_a_dialect_that_fails_on_a_value_is_named(plugin, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    registry = plugin(source(test="str.strip"))
    with pytest.raises(PluginError, match="the dialect 'ask_say' fails where it tests 'ask': TypeError"):
        load_dataset(DataConfig(), path, "sft", 0, formats_of(registry))
