"""What core may import and which words it may not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core"
HEAVY = {
    "torch", "transformers", "accelerate", "peft", "trl", "datasets", "vllm", "wandb", "bitsandbytes", "safetensors",
    "gguf", "tensorboard",
}  # fmt: skip
TORCH_SIDE = (
    "models/* artifacts/* torch_api training/checkpoint training/defaults training/evaluate training/lifecycle "
    "training/optim training/retention training/run training/supervised training/trainer"
).split()
MAY_IMPORT_TORCH = {file.relative_to(ROOT).as_posix() for name in TORCH_SIDE for file in CORE.glob(f"{name}.py")}
WORDS = ("beta", "advantage", "advantages", "clip_range", "kl_coef", "wandb", "vllm", "ppo", "dpo", "grpo")
MAY_KNOW_WORDS = {"core/config/combinations.py"}

FILES = sorted(file.relative_to(ROOT).as_posix() for file in CORE.rglob("*.py"))
ENTRIES = sorted(
    file.relative_to(ROOT).as_posix()
    for file in [
        *ROOT.glob("plugins/*/__init__.py"),
        *ROOT.glob("plugins/*.py"),
        ROOT / "reward_models" / "__init__.py",
    ]
    if file.is_file() and file.parent.name != "shared"
)


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, lazy: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; those inside functions only when `lazy`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, name.name) for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.lineno, child.module or ""
        elif is_type_checking(child) or (not lazy and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        else:
            yield from imports(child, lazy)


@pytest.mark.parametrize("file", [*FILES, *ENTRIES])
def test_nothing_heavy_is_imported_at_the_top(file):
    if file in MAY_IMPORT_TORCH or file.startswith("core/testing/"):
        return
    found = [f"{file}:{line} imports {name}" for line, name in imports(parse(file), lazy=False)
             if name.partition(".")[0] in HEAVY]  # fmt: skip
    assert not found


@pytest.mark.parametrize("file", FILES)
def test_torch_free_modules_import_only_torch_free_modules(file):
    if file in MAY_IMPORT_TORCH or file.startswith("core/testing/"):
        return
    heavy = {name.removesuffix(".py").replace("/", ".") for name in MAY_IMPORT_TORCH}
    assert not [f"{file}:{line} imports {name}" for line, name in imports(parse(file), lazy=False) if name in heavy]


@pytest.mark.parametrize("file", FILES)
def test_core_imports_no_plugin(file):
    found = [f"{file}:{line} imports {name}" for line, name in imports(parse(file), lazy=True)
             if name.partition(".")[0] in ("plugins", "reward_models")]  # fmt: skip
    assert not found


def vocabulary(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of identifiers and of strings that are not docstrings."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield line, node.value
        for name in ("id", "attr", "arg", "name", "asname"):
            if isinstance(text := getattr(node, name, None), str):
                yield line, text


@pytest.mark.parametrize("file", FILES)
def test_core_knows_no_algorithm_and_no_engine(file):
    if file in MAY_KNOW_WORDS:
        return
    words = re.compile(rf"(?<![a-z0-9])({'|'.join(WORDS)})(?![a-z0-9])")
    found = [f"{file}:{line} says '{match.group(1)}'" for line, text in vocabulary(parse(file))
             if (match := words.search(text.lower()))]  # fmt: skip
    assert not found


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("core/testing/")])
def test_files_are_short(file):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 420
