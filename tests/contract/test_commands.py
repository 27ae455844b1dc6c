"""`diff` and `back-translate`, which are plugins' commands, and what happens to commands that fail or clash."""

from __future__ import annotations

import json

import pytest

from core.platform.registry import Registry
from core.testing import command
from core.testing.contracts import CommandContract


class TestDiff(CommandContract):
    command = "diff"


class TestBackTranslate(CommandContract):
    command = "back-translate"


def run_folder(place, lr, after):
    place.mkdir()
    settings = {"stage": {"name": "sft", "lr": lr}, "peft": {"options": {}}, "runs_dir": str(place)}
    (place / "config.json").write_text(json.dumps(settings))
    (place / "plan.json").write_text(json.dumps({"data": {"fingerprint": "same"}}))
    (place / "result.json").write_text(json.dumps({"metric": "held-out score", "after": after, "steps": 4}))
    rows = [{"step": 0, "eval/distinct/2": 0.5}, {"step": 4, "eval/distinct/2": 0.25}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


def test_two_runs_are_compared(tmp_path):
    one, other = run_folder(tmp_path / "a", 1e-5, 0.5), run_folder(tmp_path / "b", 3e-5, 1.0)
    lines = [line.split() for line in command("diff", one, other).assert_ok().out.splitlines()]
    assert lines == [["run", one, other], ["settings", "that", "differ"], ["stage.lr", "1e-05", "3e-05"],
                     ["results"], ["after", "0.5", "1"]]  # fmt: skip
    lines = command("diff", one, one, "--all").assert_ok().out
    assert "settings that differ: none" in lines and lines.splitlines()[-1].split() == [
        "eval/distinct/2",
        "0.25",
        "0.25",
    ]
    outcome = command("diff", one, str(tmp_path))
    assert outcome.code == 2 and "is not the folder of a run" in outcome.err


STRANGE = """
from core.api import CommandSpec, hookimpl

def fails(arguments):
    raise KeyError("oops")

@hookimpl
def register_commands():
    return [CommandSpec("fails", "strange_commands:fails"), CommandSpec("{name}", "strange_commands:fails")]
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    def make(name):
        (tmp_path / "strange_commands.py").write_text(STRANGE.format(name=name))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PREFTUNE_PLUGINS", "strange_commands")
        monkeypatch.delitem(__import__("sys").modules, "strange_commands", raising=False)

    return make


def test_a_command_that_fails_names_its_plugin(strange):
    strange("other")
    outcome = command("fails")
    assert outcome.code == 1
    assert outcome.err.startswith(
        "error: plugin 'strange_commands' (from PREFTUNE_PLUGINS) failed in the command 'fails'"
    )
    assert "strange_commands.py, line 5" in outcome.err


@pytest.mark.parametrize(("name", "owner"), [("doctor", "plugin 'core' of preftune"), ("diff", "plugin 'diff'")])
def test_a_name_that_is_taken_names_both_owners(strange, name, owner):
    strange(name)
    clash = Registry.load(strict=False).clashes[0].what
    assert f"two plugins bring command {name}" in clash and owner in clash and "plugin 'strange_commands'" in clash


def test_a_name_that_nobody_could_type_is_refused(strange):
    strange("No_Command")
    assert any("CommandSpec has the name 'No_Command'" in line for line in Registry.load().warnings)
