"""One process or several: one trajectory of loss and gradient, one run folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_kit import finish, start
from safetensors.torch import load_file

from core.commands.chain import _check_peers
from core.errors import ConfigError, TrainingError
from core.testing.run import Lab, make_lab, read_json, read_rows
from core.training.checkpoint import damage
from core.training.loop import StepLoop
from core.training.peers import ALONE, Peers, join
from core.training.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
CHAIN = [
    "stage=rlhf", "algorithm=dpo", "pipeline.stages=[sft,rlhf]", "retention.general=false", "reuse=false",
    *(f"{stage}.{setting}" for stage in ("stage", "upstream.sft")
      for setting in ("max_steps=3", "batch_size=4", "micro_batch_tokens=64", "save_every_steps=2")),
]  # fmt: skip


def launched(real: bool, count: int, lab: Lab, runs: Path, *words: str) -> list[tuple[int, str]]:
    """Exit code and output of each of `count` processes, see `begun`."""
    wait = (lambda process: process.wait(300)) if real else finish
    return [(wait(process), output.read_text()) for process, output in begun(real, count, lab, runs, *words)]


def begun(real: bool, count: int, lab: Lab, runs: Path, *words: str) -> list[tuple[Any, Path]]:
    """`count` processes that run one command, as a launcher starts them, and the file of each one's output.

    real: start `python -m core` itself, stages and all, not warm processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {"OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in own.items()} if count > 1 else {}
        line, output = [*words, *lab.words(runs)], runs.with_name(f"{runs.name}-{rank}.txt")
        if real:
            with output.open("wb") as file:
                process: Any = subprocess.Popen(
                    [sys.executable, "-P", "-m", "core", *line], stdout=file, stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                )  # fmt: skip
        else:
            process = start(line, output, environment)
        started.append((process, output))
    return started


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.long)], ids=["warm", "real"])
def test_two_processes_follow_the_trajectory_of_one(tmp_path, real):
    """The one is always the command itself, with a real process for each stage."""
    lab = make_lab(tmp_path)
    for name, count in (("one", 1), ("two", 2)):
        for code, output in launched(real or count == 1, count, lab, tmp_path / name, *CHAIN):
            assert code == 0, output
            last = output
    assert not last.strip(), "a process that is not the first has something to say"
    for stage in ("sft", "rlhf"):
        (one,), (two,) = (sorted((tmp_path / name).glob(f"2*/*-{stage}")) for name in ("one", "two"))
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
        rows = [read_rows(folder / "metrics.jsonl") for folder in (one, two)]
        assert len(rows[0]) == len(rows[1]) >= 5
        for mine, other in zip(*rows, strict=True):
            assert mine.keys() == other.keys()
            for metric in mine:
                if metric.split("/")[-1] in (
                    "loss",
                    "grad_norm",
                    "heldout_loss",
                    "target_tokens",
                    "margin",
                    "accuracy",
                ):
                    assert other[metric] == pytest.approx(mine[metric], abs=1e-5), (stage, metric)
        left, right = (load_file(folder / "artifact" / "model.safetensors") for folder in (one, two))
        assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
        assert read_json(two / "result.json")["verified"]


def test_several_processes_are_refused_where_they_cannot_share():
    plan: Any = SimpleNamespace(stages=[SimpleNamespace(title="rlhf/ppo", spec=SimpleNamespace(samples=True))])
    with pytest.raises(ConfigError, match="rlhf/ppo samples completions, which 2 processes cannot share yet"):
        _check_peers(plan, SimpleNamespace(resolve=lambda _: Stage), Peers(1, 2))


@pytest.mark.slow
def test_a_dry_run_is_refused_where_the_run_would_be(tmp_path):
    words = (
        "stage=rlhf",
        "algorithm=grpo",
        "reward=length",
        "reward.target_tokens=4",
        "pipeline.stages=[rlhf]",
        "dry_run=true",
    )
    for code, output in launched(False, 2, make_lab(tmp_path), tmp_path / "runs", *words):
        assert code == 2 and "which 2 processes cannot share yet" in output, output


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[0, 1], [1]], ids=["all, as by a launcher", "one that is not the first"])
def test_processes_that_are_asked_to_end_agree_on_the_step(tmp_path, asked):
    words = ("stage=sft", "stage.max_steps=300", "stage.batch_size=4", "stage.micro_batch_tokens=64",
             "stage.save_every_steps=1000")  # fmt: skip
    lab = make_lab(tmp_path)
    started = begun(False, 2, lab, tmp_path / "runs", *words)
    until = time.monotonic() + 240
    while not any('"step": 3,' in path.read_text() for path in (tmp_path / "runs").glob("*/*/metrics.jsonl")):
        assert time.monotonic() < until and all(process.exitcode is None for process, _ in started)
        time.sleep(0.01)
    for rank in asked:
        os.kill(started[rank][0].pid, signal.SIGTERM)
    assert [finish(process) for process, _ in started] == [143, 143]
    text = started[0][1].read_text()
    assert "the same command resumes from step-" in text and "Traceback" not in text
    (checkpoint,) = (tmp_path / "runs").glob("*/*/checkpoints/step-*")
    assert damage(checkpoint) is None
    (last,) = launched(False, 1, lab, tmp_path / "runs", *words, "dry_run=true")
    assert last[0] == 0 and "resume" in last[1]


def test_a_launcher_that_names_no_place_to_meet_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        join(True)
    monkeypatch.delenv("WORLD_SIZE")
    assert join(True) is ALONE
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(ConfigError, match="on CPU it starts one alone"):
        join(True)


def test_micro_batches_are_shared_whole():
    items = list(range(5))
    assert sorted([*Peers(0, 2).share(items), *Peers(1, 2).share(items)]) == items
    assert list(Peers(2, 3).share([1])) == [] and list(ALONE.share(items)) == items


def test_a_loop_of_the_stages_own_is_refused():
    class Plain(Stage):
        """Leaves the loop to core."""

    class Own(Plain):
        """Brings one."""

        def fit(self, models: Any, data: Any, recorder: Any) -> Any:
            return None

    plan: Any = SimpleNamespace(stages=[SimpleNamespace(title="own", stage="own", spec=SimpleNamespace(samples=False))])
    _check_peers(plan, SimpleNamespace(resolve=lambda _: Plain), Peers(0, 2))
    with pytest.raises(ConfigError, match="own brings a training loop of its own, which 2 processes"):
        _check_peers(plan, SimpleNamespace(resolve=lambda _: Own), Peers(0, 2))


def test_different_weights_end_the_run():
    peers = SimpleNamespace(count=2, all_gather=lambda value: [value, [1.0]])
    loop = SimpleNamespace(run=SimpleNamespace(peers=peers, name="sft"), step=0,
                           optimizer=SimpleNamespace(sums=lambda: [2.0]))  # fmt: skip
    with pytest.raises(TrainingError, match="2 processes hold different weights"):
        StepLoop._agree(loop)
