"""A run is values: nothing assigns to it, its main path is short, and a type checker sees what a stage is."""

from __future__ import annotations

import ast
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from core.platform.registry import Registry
from core.types import Batch, Evaluation, Limit, LossOutput

ROOT = Path(__file__).resolve().parents[2]
OURS = [file for top in ("core", "plugins", "reward_models", "examples") for file in (ROOT / top).rglob("*.py")]


def targets(tree: ast.AST) -> Iterator[ast.expr]:
    """What is assigned to, tuples taken apart."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            found = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            found = [node.target]
        for target in found:
            yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def is_of_a_run(target: ast.expr) -> bool:
    """Whether it is an attribute or an item of something reached through a run: `run.x`, `self.run.cfg.stage.y`."""
    parts: list[str] = []
    inner: ast.expr = target
    while isinstance(inner, ast.Attribute | ast.Subscript):
        parts.append(inner.attr if isinstance(inner, ast.Attribute) else "[]")
        inner = inner.value
    parts.append(inner.id if isinstance(inner, ast.Name) else "")
    return "run" in parts[1:]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("run.x = 1", True), ("self.run.plan.x += 1", True), ("a, self.run.y = 1, 2", True), ("run.cfg['a'] = 1", True),
        ("del run.x", True), ("self.run = run", False), ("run = x", False), ("self.run, self.cfg = run, 1", False),
    ],
)  # fmt: skip
def test_assignments_to_a_run_are_seen(line: str, wrong: bool) -> None:
    assert any(is_of_a_run(target) for target in targets(ast.parse(line))) == wrong


def test_nothing_assigns_to_a_run() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{target.lineno}: {ast.unparse(target)}"
        for file in OURS
        for target in targets(ast.parse(file.read_text(encoding="utf-8")))
        if is_of_a_run(target)
    ]
    assert found == []


@pytest.mark.parametrize("kind", [Limit, LossOutput, Evaluation, Batch])
def test_what_a_stage_returns_is_typed(kind: type) -> None:
    assert all("Any" not in str(field.type).replace("dict[str, Any]", "") for field in fields(kind))


# ---- the main path -------------------------------------------------------------------------------------------------


def test_the_main_path_has_at_most_eight_own_frames(lab, tmp_path, tiny_cli, monkeypatch) -> None:
    """From `python -m core stage=sft` to `backward`; frames of libraries between them do not count."""
    import torch

    paths: list[list[traceback.FrameSummary]] = []
    loads: list[Registry] = []
    backward, load = torch.Tensor.backward, Registry.load.__func__
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self: (paths.append(traceback.extract_stack()), backward(self))[1]
    )
    monkeypatch.setattr(
        Registry, "load", classmethod(lambda cls, *a, **k: (loads.append(made := load(cls, *a, **k)), made)[1])
    )
    outcome = tiny_cli(["stage=sft", "stage.max_steps=1", *lab.words(tmp_path / "runs")])
    assert outcome.code == 0, outcome.err
    own = [f"{frame.name} ({Path(frame.filename).relative_to(ROOT)})" for frame in paths[0] if is_own(frame.filename)]
    assert own[0].startswith("main ") and own[-1].startswith("update ")
    assert len(own) <= 8, own
    assert len(loads) == 1, "a run of one stage loads the plugins once"


def is_own(file: str) -> bool:
    """Whether it is of core, the plugins or the reward models."""
    path = Path(file)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("core", "plugins", "reward_models")


# ---- types -----------------------------------------------------------------------------------------------------------

STAGE = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from core.api import Batch, LossOutput, StageConfig
from core.torch_api import Models, Stage, StageData


@dataclass
class MyConfig(StageConfig):
    strength: float = 1.0


@dataclass(frozen=True)
class Row:
    tokens: int


class Mine(Stage[MyConfig, StageData, Row]):
    @override
    def build_data(self) -> StageData:
        return StageData(self.run.examples.demonstrations(self.run.plan.dataset.train))

    @override
    def collect_batch(self, models: Models, data: StageData, step: int) -> Batch[Row]:
        return Batch(updates=[[Row(3)]])

    @override
    def compute_loss(self, models: Models, micro_batch: Row) -> LossOutput:
        return LossOutput(torch.tensor(self.cfg.strength * micro_batch.tokens))
"""
FAULTS = {
    "wrong argument": ("self.run.plan.dataset.train)", 'self.run.plan.dataset.train, "all")', "arg-type"),
    "wrong return": ("return LossOutput(torch", "return (torch", "return-value"),
    "misspelt setting": ("self.cfg.strength", "self.cfg.strenght", "attr-defined"),
    "misspelt hook": ("def compute_loss", "def compute_los", "misc"),
    "wrong batch type": ("[[Row(3)]]", "[[3]]", "list-item"),
}  # fmt: skip


@pytest.mark.slow
def test_a_type_checker_finds_five_planted_faults(tmp_path) -> None:
    files = {"plain": STAGE}
    for name, (right, wrong, _) in FAULTS.items():
        assert STAGE.count(right) == 1, name
        files[name] = STAGE.replace(right, wrong)
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / f"stage_{name.replace(' ', '_')}.py"
        paths[name].write_text(text)
    words = ["--config-file", str(ROOT / "pyproject.toml"), "--no-incremental", *map(str, paths.values())]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    told = {name: [line for line in checked.stdout.splitlines() if path.name in line] for name, path in paths.items()}
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert told.pop("plain") == []
    for name, (_, _, code) in FAULTS.items():
        assert any(f"[{code}]" in line for line in told[name]), (name, told[name])
