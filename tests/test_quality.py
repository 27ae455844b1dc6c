"""The rules of docs/quality.md: sets of tests, their seconds, and no test that cannot fail."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TESTS = """
import time
import pytest

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

@pytest.fixture(scope="module")
def shared():
    burn(0.4)

@pytest.fixture
def own():
    burn(0.4)

def test_dear(): burn(0.4)
def test_dear_fixture(own): pass
def test_dear_child():
    import subprocess, sys
    subprocess.run([sys.executable, "-c", "sum(range(30_000_000))"], check=True)
@pytest.mark.slow
def test_dear_and_marked_slow(): burn(0.4)
@pytest.mark.long
def test_dear_and_marked_long(): burn(0.4)
def test_cheap(shared): pass
def test_wrong(): assert not burn(0.4), "and dear"; assert 0
"""


@pytest.mark.parametrize("strict", [True, False])
def test_a_dear_test_is_told_or_fails_unless_it_is_marked(tmp_path, strict):
    """Its body, its own fixtures and its children count, what it shares does not."""
    (tmp_path / "test_costs.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(
        "import cpu_budget\ncpu_budget.LIMIT_S, cpu_budget.crowded = 0.2, lambda: False\n"
        f"def pytest_configure(config): config.pluginmanager.register(cpu_budget.CpuBudget({strict}))\n"
    )
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = " + str(ROOT / "tests") + "\nmarkers =\n"
                                         + "".join(f"    {marker}\n" for marker in markers))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--strict-markers"],
        cwd=tmp_path, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    ends = {line.split("::")[1].split()[0]: line.split()[0] for line in done.stdout.splitlines()
            if line.startswith(("PASSED", "FAILED"))}  # fmt: skip
    failed = {name for name, end in ends.items() if end == "FAILED"}
    dear = {"test_dear", "test_dear_fixture", "test_dear_child"}
    assert failed == ({*dear, "test_wrong"} if strict else {"test_wrong"}), done.stdout
    assert len(ends) == 7
    if strict:
        assert "CPU seconds, more than 0.2: mark it slow or long" in done.stdout
    else:
        told = done.stdout.partition("over 0.2 CPU seconds: mark them slow or long")[2].partition("====\n")[2]
        assert {name for name in ends if f" s  test_costs.py::{name}\n" in told} == dear


# No test that cannot fail.


def can_fail(node: ast.AST) -> bool:
    """Whether an assertion, an error or a check stands somewhere in it."""
    for child in ast.walk(node):
        if isinstance(child, ast.Assert | ast.Raise):
            return True
        if isinstance(child, ast.Call):
            name = ast.unparse(child.func)
            checked = any(word.arg == "check" and ast.unparse(word.value) == "True" for word in child.keywords)
            if checked or name.split(".")[-1].startswith("assert") or name in ("pytest.raises", "pytest.warns"):
                return True
    return False


def functions(file: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]


def test_every_test_can_fail():
    """By itself, or through a function of its file."""
    files = [file for place in ("tests", "core/testing", "examples") for file in (ROOT / place).rglob("*.py")]
    dumb, count = [], 0
    for file in files:
        found = functions(file)
        checks = {one.name for one in found if not one.name.startswith("test_") and can_fail(one)}
        for one in found:
            if one.name.startswith("test_"):
                count += 1
                called = {ast.unparse(call.func) for call in ast.walk(one) if isinstance(call, ast.Call)}
                if not can_fail(one) and not called & checks:
                    dumb.append(f"{file.relative_to(ROOT)}:{one.lineno} {one.name}")
    assert count > 900
    assert not dumb
