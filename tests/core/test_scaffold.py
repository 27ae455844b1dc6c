"""`new-plugin` writes a whole package or nothing. That the packages work is tested in tests/thirdparty."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from core.__main__ import main
from core.commands.scaffold import KINDS, write_package


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_package_can_be_read(tmp_path, kind):
    folder = write_package("acme-thing", kind, tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["preftune"] == {"acme_thing": "acme_thing"}
    assert project["project"]["name"] == "acme-thing"
    for file in folder.rglob("*.py"):
        ast.parse(file.read_text())
    for file in [*folder.rglob("*.yaml"), *folder.rglob("*.yml")]:
        assert yaml.safe_load(file.read_text())
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"README.md", ".gitignore", ".github/workflows/test.yml", "tests/test_contract.py"} <= files
    for file in files:
        assert "$" not in (folder / file).read_text() or file.endswith(".yml"), file


def test_a_package_has_the_style_that_ruff_asks_for_and_names_what_is_there(tmp_path):
    for kind in KINDS:
        folder = write_package(f"acme-{kind}", kind, tmp_path)
        named = re.findall(r"`([\w/.]+)` (?:says|holds)", (folder / "README.md").read_text())
        assert len(named) >= 2 and all((folder / path).exists() for path in named), kind
        assert ("package-data" in (folder / "pyproject.toml").read_text()) == (folder / f"acme_{kind}/conf").exists()
        style = ["--isolated", "--no-cache", "--select=I,F", "--line-length=120"]
        ruff = [sys.executable, "-m", "ruff", "check", *style]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_command_tells_what_to_type_next(tmp_path, capsys):
    assert main(["new-plugin", "my-loss", "--kind=stage", "--into", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"pip install -e '{tmp_path / 'my-loss'}[test]'" in out and "pytest" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kind", "stage"], "takes one name"),
        (["a", "b", "--kind", "stage"], "takes one name"),
        (["mine", "--kind", "stge"], "no kind 'stge'"),
        (["mine"], "no kind ''"),
        (["My Plugin", "--kind", "stage"], "cannot name a package"),
        (["../mine", "--kind", "stage"], "cannot name a package"),
        (["mine", "--knd", "stage"], "does not take '--knd'"),
        (["mine", "--kind", "stage", "--into", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_what_it_cannot_take_is_refused(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", *arguments]) == 2
    assert text in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["new-plugin", "mine", "--kind", "data", "--into", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err and not list((tmp_path / "mine").iterdir())
