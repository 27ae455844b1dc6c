"""The order of the house: a module imports from its own floor and those below it, and nothing goes in a circle."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FLOORS = (
    "core core.errors core.secrets core.stopwatch core.quiet core.signals core.startup "
    "core.tables core.types core.suggest",
    "core.files core.jsonl core.proof core.readback",
    "core.results",
    "core.settings",
    "core.platform",
    "core.data core.scoring",
    "core.config core.tokens",
    "core.planning core.builtin",
    "core.report",
    "core.console core.models",
    "core.artifacts",
    "core.training",
    "core.commands",
    "core.api core.torch_api core.__main__ core.testing",
    "plugins reward_models",
)
"""From the ground up. A name stands for the module and all below it; the longest one that fits counts."""

PUBLIC = ("core.api", "core.torch_api")
"""What plugins and reward models may import of core."""


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    files = itertools.chain.from_iterable((ROOT / top).rglob("*.py") for top in ("core", "plugins", "reward_models"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def imported(module: str) -> Iterator[str]:
    """Modules of ours that a module imports: anywhere in it, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where they lead"
            base = node.module or ""
            names = [inner if (inner := f"{base}.{name.name}") in MODULES else base for name in node.names]
        yield from (name for name in names if name in MODULES and name != module)


ARROWS = {module: sorted(set(imported(module))) for module in MODULES}


def floor(module: str) -> int:
    """Number of the floor that a module stands on."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for number, names in enumerate(FLOORS):
            if name in names.split() and (length > 1 or module == name or name in ("plugins", "reward_models")):
                return number
    raise AssertionError(f"{module} stands on no floor: give its package a place in FLOORS")


def runs_up() -> set[tuple[str, str]]:
    """Imports from a higher floor, and those of a plugin from core's inside."""
    found = set()
    for module, targets in ARROWS.items():
        outside = module.partition(".")[0] != "core"
        for target in targets:
            inside = target.partition(".")[0] == "core" and target not in PUBLIC
            if floor(target) > floor(module) or (outside and inside):
                found.add((module, target))
    return found


def test_no_import_runs_up() -> None:
    assert runs_up() == set()


def circles() -> list[list[str]]:
    """Groups of modules that import one another (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in ARROWS[module]:
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in ARROWS:
        if module not in number:
            visit(module)
    return found


def test_nothing_goes_round_in_a_circle() -> None:
    assert circles() == []
