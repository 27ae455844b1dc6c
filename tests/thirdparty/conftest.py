"""Clean environments for the tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from clean_environment import Environment


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """Makes an environment."""

    def make() -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        python = folder / "venv" / "bin" / "python"
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
        libraries = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
        (site / "libraries.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in libraries))
        (folder / "cwd").mkdir()
        return Environment(python, folder / "cwd")

    return make


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[], Environment]) -> Environment:
    """One environment for the tests of a module."""
    return make_environment()
