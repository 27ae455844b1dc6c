"""Which plugins may load, by environment and command line; and what a preset may not say."""

from __future__ import annotations

import json
import os

import pytest

from core.__main__ import main
from core.errors import ConfigError
from core.platform.registry import Registry
from core.platform.switches import (
    ALLOW_VARIABLE,
    DISABLE_VARIABLE,
    OWN_PLUGIN,
    Switches,
    check_switches,
    switched,
)
from core.settings.schema import PluginsConfig


def loaded() -> set[str]:
    return {record.owner.plugin for record in Registry.load().plugins if record.state == "loaded"}


def test_allow_takes_plugins_and_distributions(no_builtins, make_distribution, monkeypatch):
    """Core's own plugin stays whatever is allowed."""
    nothing = "VALUE = 1"
    make_distribution("one", nothing, distribution="first")
    make_distribution("two", nothing, distribution="second")
    make_distribution("three", nothing, distribution="third")
    assert loaded() == {OWN_PLUGIN, "one", "two", "three"}
    monkeypatch.setenv(ALLOW_VARIABLE, "one, second,nobody")
    registry = Registry.load()
    assert {record.owner.plugin for record in registry.plugins if record.state == "loaded"} == {
        OWN_PLUGIN,
        "one",
        "two",
    }
    third = next(record for record in registry.plugins if record.owner.plugin == "three")
    assert third.state == "blocked" and "plugins.allow" in third.reason
    assert [line for line in registry.warnings if "'nobody'" in line]
    monkeypatch.setenv(ALLOW_VARIABLE, "")
    assert loaded() == {OWN_PLUGIN}


def test_what_may_not_load_is_not_imported(no_builtins, make_distribution, tmp_path):
    mark = tmp_path / "imported"
    make_distribution("spy", f"open({str(mark)!r}, 'w').close()", distribution="spying")
    with switched(["plugins.allow=[other]"]):
        Registry.load()
        assert not mark.exists()
    with switched(["plugins.block=[spy]"]):
        Registry.load()
        assert not mark.exists()
    Registry.load()
    assert mark.exists()


def test_the_command_line_switches_one_command(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "first")
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    with switched(["stage=sft", "plugins.allow=[a,'b']", "+plugins.block=[second]"]):
        assert Switches.read() == Switches(("a", "b"), ("first", "second"), Switches.read().modules)
    assert ALLOW_VARIABLE not in os.environ and os.environ[DISABLE_VARIABLE] == "first"


def test_commands_obey(acme, capsys):
    assert main(["plugins", "--json", "plugins.allow=[nobody]"]) == 0
    rows = json.loads(capsys.readouterr().out)["plugins"]
    assert next(row for row in rows if row["plugin"] == "acme_stages")["state"] == "blocked"
    assert main(["stage=sft", "plugins.allow=[nobody]", "dry_run=true"]) == 2
    assert "no stage is installed" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a", "{a: 1}", "[a", "[$(x)]"])
def test_a_switch_that_is_no_list_is_refused(value):
    with pytest.raises(ConfigError, match="must be a list of names"), switched([f"plugins.allow={value}"]):
        pass


def test_a_preset_comes_too_late(monkeypatch):
    monkeypatch.setenv(ALLOW_VARIABLE, "sft")
    check_switches(PluginsConfig(allow=["sft"]))
    with pytest.raises(ConfigError, match="read after the plugins were loaded"):
        check_switches(PluginsConfig(allow=["other"]))
    with pytest.raises(ConfigError, match=r"plugins\.block=x"):
        check_switches(PluginsConfig(block=["x"]))
    monkeypatch.delenv(ALLOW_VARIABLE)
    with pytest.raises(ConfigError, match="command line"):
        check_switches(PluginsConfig(allow=[]))
