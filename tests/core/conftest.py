"""Plugins made for one test, and a command line that runs in this process."""

from __future__ import annotations

import itertools
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from made_once import made_once
from run_kit import FAKES, Lab, make_lab, run_apart, verify_here

from core.__main__ import main
from core.platform.switches import DISABLE_VARIABLE, MODULES_VARIABLE
from core.testing.warm import warm_stages

_numbers = itertools.count()


@pytest.fixture
def no_builtins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry point that is installed on this machine is loaded."""
    installed = ",".join(sorted(point.name for point in metadata.entry_points(group="preftune")))
    monkeypatch.setenv(DISABLE_VARIABLE, installed)
    monkeypatch.setenv(MODULES_VARIABLE, "")


@pytest.fixture
def acme(no_builtins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin `acme_stages`, alone."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv(MODULES_VARIABLE, "acme_stages")


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module with a name of its own onto sys.path and returns the name."""

    def make(source: str) -> str:
        name = f"made_for_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(tmp_path))
        return name

    return make


@pytest.fixture
def make_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_module) -> Callable[..., str]:
    """Installs a distribution with one entry point onto sys.path and returns the name of its module."""

    def make(plugin: str, source: str, distribution: str = "acme", version: str = "1.2", extra: str = "") -> str:
        module = make_module(source)
        folder = tmp_path / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{extra}")
        (folder / "entry_points.txt").write_text(f"[preftune]\n{plugin} = {module}\n")
        return module

    return make


@dataclass
class Executed:
    """What the runs of a command line were given."""

    configs: list[Any] = field(default_factory=list)
    plain: list[dict[str, Any]] = field(default_factory=list)
    registries: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    code: int = 0


@dataclass
class Outcome:
    """Exit code and output of a command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Executed:
    """Stands in for core.commands.chain, and remembers what it was called with."""
    seen = Executed()

    def run_chain(cfg: Any, registry: Any, config: dict[str, Any]) -> int:
        if seen.error is not None:
            raise seen.error
        seen.configs.append(cfg)
        seen.registries.append(registry)
        seen.plain.append(config)
        return seen.code

    module = types.ModuleType("core.commands.chain")
    module.run_chain = run_chain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "core.commands.chain", module)
    return seen


@pytest.fixture
def cli(capfd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: Executed) -> Callable[..., Outcome]:
    """Runs a command line in this process, in a folder of its own."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = main(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A tiny model and rows for it."""
    folder = made_once(tmp_path_factory, "lab", make_lab)
    return Lab(folder / "model", folder / "data")


@pytest.fixture(scope="session")
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of a finished chain up to PPO; copy it to change it."""

    def make(folder: Path) -> None:
        code = run_apart(lab.rlhf(folder / "runs", "ppo"), folder / "out.txt")
        assert code == 0, (folder / "out.txt").read_text()

    return made_once(tmp_path_factory, "finished", make) / "runs"


@pytest.fixture
def tiny_cli(capfd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """Runs a command line with real stages in this process, or in warm ones where there are several; artifacts are
    verified in the stage's process."""
    import core.artifacts.artifact

    monkeypatch.setattr(core.artifacts.artifact, "verify_in_fresh_process", verify_here)
    monkeypatch.setenv("COLUMNS", "200")

    def run(arguments: list[str]) -> Outcome:
        capfd.readouterr()
        code = main(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err + captured.out, captured.err
        return Outcome(code, captured.out, captured.err)

    with warm_stages():
        yield run


@pytest.fixture
def activate() -> Callable[..., Any]:
    """Registers a stage of a registry for its hooks, as opening it does; returns the instance."""
    from core.platform.providers import Providers
    from core.training.opening import _register

    def register(registry: Any, name: str, providers: Any = None) -> Any:
        spec = registry.stages[(name, "")].spec
        cfg = types.SimpleNamespace(
            stage=spec.config(name=name), tracker=registry.trackers["wandb"].spec.config(name="wandb")
        )
        run = types.SimpleNamespace(plan=types.SimpleNamespace(spec=spec), cfg=cfg, name=name)
        return _register(run, registry, providers or Providers())[0]  # type: ignore[arg-type]

    return register
