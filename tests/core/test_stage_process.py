"""Work in a process of its own: results, errors, and its end with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import ConfigError, Reported, TrainingError
from core.training.stage_process import run_apart

ROOT = Path(__file__).resolve().parents[2]


def write_pid(path: Path) -> None:
    path.write_text(str(os.getpid()))


def refuse() -> None:
    raise ConfigError("no such thing", "stage.lr", "take another")


def stumble() -> None:
    raise ZeroDivisionError("by accident")


def end_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long(path: Path) -> None:
    write_pid(path)
    time.sleep(120)


def test_the_work_has_a_process_of_its_own(tmp_path: Path) -> None:
    run_apart(write_pid, tmp_path / "pid")
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_an_error_is_told_there_and_its_exit_code_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Reported) as caught:
        run_apart(refuse)
    assert caught.value.exit_code == 2
    err = capfd.readouterr().err
    assert err.splitlines() == ["error: no such thing", "  where: stage.lr", "  mend:  take another"]


def test_an_accident_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Reported) as caught:
        run_apart(stumble)
    assert caught.value.exit_code == 1
    assert "ZeroDivisionError: by accident" in capfd.readouterr().err


def test_a_killed_process_is_told_as_such() -> None:
    with pytest.raises(TrainingError, match=r"ended by SIGKILL(.|\n)*resumes(.|\n)*want of memory"):
        run_apart(end_itself)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = f"from tests.core.test_stage_process import *; run_apart(sleep_long, Path({str(tmp_path / 'pid')!r}))"
    parent = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n    {code}"], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
