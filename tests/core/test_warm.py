"""Processes from the warm server stand in for fresh ones: same environment, folder, path and terminal, an end of their
own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from test_stage_process import end_itself, refuse, write_pid

from core.errors import Reported, TrainingError
from core.testing import warm
from core.training import stage_process


def tell() -> None:
    print(os.environ["PREFTUNE_TEST_WORD"], Path.cwd(), sys.path[0], "torch" in sys.modules)


def tell_from_another() -> None:
    warm.start(tell).join()


@pytest.mark.parametrize("work", [tell, tell_from_another])
def test_it_takes_over_what_a_fresh_process_would(work, tmp_path, monkeypatch, capfd):
    """Also where a process from the server asks for it."""
    monkeypatch.setenv("PREFTUNE_TEST_WORD", str(work))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    process = warm.start(work)
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().out.split()[-3:] == [str(tmp_path), str(tmp_path / "first"), "True"]


def tell_sigint() -> None:
    print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_it_ignores_sigint_where_a_fresh_process_would(handler, capfd):
    """However the server was started."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        warm.start(tell_sigint).join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().out.split()[-1] == str(handler == signal.SIG_IGN)


def test_stages_have_processes_of_their_own(tmp_path, capfd):
    with warm.warm_stages():
        stage_process.run_apart(write_pid, tmp_path / "pid")
        assert int((tmp_path / "pid").read_text()) != os.getpid()
        with pytest.raises(Reported) as caught:
            stage_process.run_apart(refuse)
        assert caught.value.exit_code == 2 and capfd.readouterr().err.startswith("error: no such thing")
        with pytest.raises(TrainingError, match=signal.Signals.SIGKILL.name):
            stage_process.run_apart(end_itself)
    assert stage_process.multiprocessing.get_context("spawn").get_start_method() == "spawn"


def test_a_broken_artifact_is_told_by_its_verification(tmp_path):
    job = {"folder": str(tmp_path), "expected": "none", "makes": "policy", "dtype": "float32", "ends": [2], "pad": 0,
           "threads": 1, "quant": "none", "device": "cpu", "remote_code": False}  # fmt: skip
    found = warm.verify_apart(job)
    (check,) = found["checks"]
    assert not found["ok"] and check["name"] == "reload" and "FileNotFoundError" in check["detail"]
