"""What git keeps of this repository: nothing that `.gitignore` names, no link that leads nowhere on another machine."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout"
)


def git(*arguments: str, cwd: Path = ROOT) -> list[str]:
    command = ["git", "-c", f"safe.directory={cwd}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.splitlines()


def links(cwd: Path) -> list[str]:
    """Tracked symbolic links (git's mode 120000)."""
    return [line.split("\t")[1] for line in git("ls-files", "--stage", cwd=cwd) if line.startswith("120000")]


def test_nothing_ignored_and_no_link_is_tracked():
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    assert links(ROOT) == []


def test_an_environment_that_is_a_link_is_ignored_too(tmp_path):
    """`.venv/` with a slash matches folders alone: a linked environment could be committed, and broke every clone."""
    git("init", "-q", cwd=tmp_path)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / ".venv").symlink_to(tmp_path)
    git("add", "--all", cwd=tmp_path)
    assert git("ls-files", cwd=tmp_path) == [".gitignore"]
    git("add", "--force", ".venv", cwd=tmp_path)
    assert links(tmp_path) == [".venv"]
