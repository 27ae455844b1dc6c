"""Bad neighbours, all at once and in a process of its own: each is named, none takes the tool down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
from dataclasses import dataclass
from core.api import StageConfig, StageSpec, hookimpl
@dataclass
class Config(StageConfig):
    weight: float = 1.0
@hookimpl
def register_stages():
    return [StageSpec({name!r}, Config, "nowhere:Stage", "sft", summary="a stage")]
"""
NEIGHBOURS = {
    "raises": "raise OSError('no luck today')",
    "heavy": "import torch",
    "misspelt": "from core.api import hookimpl\n@hookimpl\ndef register_stage(): return []",
    "aged": "PREFTUNE_API = 0",
    "fine": STAGE.format(name="fine"),
}


def install(site: Path, plugin: str, source: str) -> None:
    """A distribution `<plugin>-dist` with one entry point, as an installation would leave it."""
    (site / f"{plugin}_module.py").write_text(source)
    folder = site / f"{plugin}_dist-1.5.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}-dist\nVersion: 1.5\n")
    (folder / "entry_points.txt").write_text(f"[preftune]\n{plugin} = {plugin}_module\n")


def command(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "PREFTUNE_PLUGINS": ""}
    return subprocess.run(
        [sys.executable, "-m", "core", *words], env=environment, cwd=site, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, of which most are broken."""
    folder = tmp_path_factory.mktemp("site")
    for plugin, source in NEIGHBOURS.items():
        install(folder, plugin, source)
    return folder


def test_each_is_named_and_the_rest_works(site: Path):
    done = command(site, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["plugin"]: row for row in json.loads(done.stdout)["plugins"]}
    states = {name: (rows[name]["state"], rows[name]["distribution"], rows[name]["version"]) for name in NEIGHBOURS}
    for name in ("raises", "misspelt", "aged"):
        assert states[name] == ("broken", f"{name}-dist", "1.5")
    assert (
        "no luck today" in rows["raises"]["reason"] and "Did you mean 'register_stages'?" in rows["misspelt"]["reason"]
    )
    assert rows["heavy"]["imports_torch"] and not rows["fine"]["imports_torch"]
    assert states["fine"][0] == states["heavy"][0] == rows["sft"]["state"] == "loaded"


def test_a_run_warns_of_each_by_name(site: Path):
    done = command(site, "stage=fine", "stage.wieght=2")
    assert done.returncode == 2 and "Did you mean 'weight'?" in done.stderr
    for name in ("raises", "misspelt", "aged", "heavy"):
        assert f"plugin '{name}' of {name}-dist 1.5" in done.stderr, name
    assert "Traceback" not in done.stderr


def test_two_that_claim_one_name_are_both_named(tmp_path: Path):
    install(tmp_path, "one", STAGE.format(name="twice"))
    install(tmp_path, "two", STAGE.format(name="twice"))
    done = command(tmp_path, "stage=sft", "dry_run=true")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "two plugins bring stage twice: plugin 'one' of one-dist 1.5 and plugin 'two' of two-dist 1.5" in done.stderr
    assert "PREFTUNE_DISABLE_PLUGINS=two" in done.stderr
    listed = command(tmp_path, "plugins")
    assert listed.returncode == 1 and "clash: two plugins bring stage twice" in listed.stdout
    assert command(tmp_path, "--help", "plugins.block=[two]").returncode == 0


def test_a_preset_under_a_built_in_name_is_named(tmp_path: Path):
    source = "from core.api import hookimpl\n@hookimpl\ndef register_config_dirs(): return ['pkg://sly_presets']"
    install(tmp_path, "sly", source)
    (tmp_path / "sly_presets" / "stage").mkdir(parents=True)
    (tmp_path / "sly_presets" / "__init__.py").write_text("")
    (tmp_path / "sly_presets" / "stage" / "sft.yaml").write_text("lr: 9.0\n")
    done = command(tmp_path, "stage=sft", "dry_run=true")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "stage/sft.yaml of plugin 'sly' of sly-dist 1.5" in done.stderr
