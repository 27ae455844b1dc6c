"""The page of the public API says what the code says, and every public name says what it is."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from core.commands import api_entries, api_page, reference
from core.commands.api_entries import Definition, Entry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
ENTRIES = api_entries.entries()
ERRORS = {entry.name for entry in ENTRIES if entry.kind == "error"}
SILENT = {
    "Models.reference_logprobs ModelError",
    "ScoreModel ModelError",
    "ScoreModel.adapter_off ModelError",
    "TokenModel.adapter_off ModelError",
    "TokenModel.forward ModelError",
}
"""Errors that a docstring does not tell yet. May only shrink."""


def definitions(entry: Entry) -> list[tuple[str, Definition]]:
    return [(entry.name, entry), *((f"{entry.name}.{method.name}", method) for method in entry.methods)]


def test_the_page_is_current(capsys):
    assert reference.command(["--api"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, "run `make docs`"


def test_each_public_name_stands_there_once_and_under_a_heading():
    text = PAGE.read_text(encoding="utf-8")
    heads = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    core = [name for module in api_entries.MODULES for name in importlib.import_module(module).__all__]
    names = core + [name for module in api_entries.EXTENDED for name in importlib.import_module(module).__all__]
    assert Counter(heads) == Counter(names)
    anchors = Counter(head.lower() for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    assert max(anchors.values()) == 1, f"two headings would have one anchor: {anchors.most_common(2)}"
    grouped = [name for group in api_page.GROUPS.values() for name in group.split()]
    assert Counter(grouped) == Counter(core), "give each name one place in api_page.GROUPS"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_public_name_has_a_docstring(entry):
    assert [name for name, definition in definitions(entry) if not definition.doc] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_docstring_tells_the_errors_that_are_raised(entry):
    """Those of our classes in `raise` statements of the function itself; what it calls may raise more."""
    silent = {f"{name} {error}" for name, definition in definitions(entry)
              for error in ERRORS & set(definition.raises) if error not in definition.doc}  # fmt: skip
    assert silent <= SILENT
