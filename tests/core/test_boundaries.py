"""What core may import and which words it may not know."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core"
HEAVY = {
    "torch", "transformers", "accelerate", "peft", "trl", "datasets", "vllm", "wandb", "bitsandbytes", "safetensors",
    "gguf", "tensorboard", "typing_extensions",
}  # fmt: skip
TORCH_SIDE = (
    "models/* artifacts/* torch_api training/checkpoint training/evaluate training/loop training/making "
    "training/metrics training/opening training/optim training/recorder training/resume training/retention "
    "training/row_file training/run training/run_stage training/stage"
).split()
MAY_IMPORT_TORCH = {file.relative_to(ROOT).as_posix() for name in TORCH_SIDE for file in CORE.glob(f"{name}.py")}
WORDS = ("beta", "advantage", "advantages", "clip_range", "kl_coef", "wandb", "vllm", "ppo", "dpo", "grpo")
MAY_KNOW_WORDS = {"core/config/combinations.py"}

FILES = sorted(file.relative_to(ROOT).as_posix() for file in CORE.rglob("*.py"))
TORCH_FREE = [file for file in FILES if file not in MAY_IMPORT_TORCH and not file.startswith("core/testing/")]
ENTRIES = sorted(
    file.relative_to(ROOT).as_posix()
    for file in [
        *ROOT.glob("plugins/*/__init__.py"),
        *ROOT.glob("plugins/*.py"),
        ROOT / "reward_models" / "__init__.py",
    ]
    if file.is_file() and file.parent.name != "shared"
)


@functools.cache
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


def importing(files: list[str], lazy: bool, wrong: Callable[[str], bool]) -> list[str]:
    """A line for each import of the files whose module is wrong."""
    return [f"{file}:{line} imports {name}" for file in files for line, name in imports(parse(file), lazy)
            if wrong(name)]  # fmt: skip


def test_there_are_files_to_look_at():
    assert len(FILES) > 100 and len(ENTRIES) > 10 and len(TORCH_FREE) > 100 and len(MAY_IMPORT_TORCH) > 10


def test_nothing_heavy_is_imported_at_the_top():
    assert not importing([*TORCH_FREE, *ENTRIES], False, lambda name: name.partition(".")[0] in HEAVY)


def test_torch_free_modules_import_only_torch_free_modules():
    heavy = {name.removesuffix(".py").replace("/", ".") for name in MAY_IMPORT_TORCH}
    assert not importing(TORCH_FREE, False, lambda name: name in heavy)


def test_core_imports_no_plugin():
    plugins = ("plugins", "reward_models")
    assert not importing(FILES, True, lambda name: name.partition(".")[0] in plugins)


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


def test_core_knows_no_algorithm_and_no_engine():
    words = re.compile(rf"(?<![a-z0-9])({'|'.join(WORDS)})(?![a-z0-9])")
    found = [f"{file}:{line} says '{match.group(1)}'" for file in FILES if file not in MAY_KNOW_WORDS
             for line, text in vocabulary(parse(file)) if (match := words.search(text.lower()))]  # fmt: skip
    assert not found


def test_files_are_short():
    files = [file for file in FILES if not file.startswith("core/testing/")]
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files}
    assert not {file: lines for file, lines in lengths.items() if lines > 420}
