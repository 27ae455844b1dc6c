"""A virtual environment that sees this one's libraries, to install packages into and out of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@dataclass
class Environment:
    """A virtual environment without pip; this interpreter's pip installs into it, without a network."""

    python: Path
    cwd: Path

    def run(self, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS` in the environment, in an empty folder."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFTUNE_") and k != "PYTHONPATH"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **variables}
        done = subprocess.run(
            [str(self.python), *words], cwd=self.cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def core(self, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m core WORDS`."""
        return self.run("-m", "core", *words, check=check, **variables)

    def test(self, *folders: Path) -> str:
        """The packages' own tests, run in the environment; what pytest prints."""
        options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(folders[0].parent))
        return self.run("-m", "pytest", *options, *map(str, folders)).stdout

    def pip(self, *words: str) -> None:
        """pip on this environment."""
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(self.python), "-q", "--disable-pip-version-check", *words],
            cwd=self.cwd, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def install(self, *folders: Path, editable: Collection[Path] = ()) -> None:
        """Install the packages in one call, without their dependencies, which are here."""
        words = [word for folder in folders for word in (["-e"] if folder in editable else []) + [str(folder)]]
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *words)
