"""A run that is killed at any place and started again ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_kit
from run_kit import Lab, assert_same, kill_at, only_folder, read_json, rows, run_apart, run_folders, steps

import core.training.checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def straight_sft(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the demonstrations, left alone."""
    folder = tmp_path_factory.mktemp("straight_sft")
    assert run_apart(lab.sft(folder / "runs"), folder / "out.txt") == 0, (folder / "out.txt").read_text()
    return only_folder(folder / "runs", "sft")


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_killed_and_repeated(lab: Lab, tmp_path: Path) -> None:
    """The real command as a user types it, killed as soon as metrics.jsonl shows step 3."""
    more = ["stage.max_steps=40", "stage.save_every_steps=2"]
    command = [sys.executable, "-m", "core", *lab.sft(tmp_path / "runs", *more)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        until = time.monotonic() + run_kit.ENDS_IN_S
        while not any('"step": 3,' in path.read_text() for path in (tmp_path / "runs").glob("*/*/metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    folder = only_folder(tmp_path / "runs", "sft")
    assert not (folder / "result.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed from step-000000" in done.stdout
    assert run_apart(lab.sft(tmp_path / "straight", *more), tmp_path / "out.txt") == 0
    assert_same(folder, only_folder(tmp_path / "straight", "sft"))
    assert steps(folder) == list(range(1, 41))
    assert read_json(folder / "artifact.json")["verification"]["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("annotation", ["frozen", "live"])
def test_nlft_killed_after_its_token_weights_were_made(lab: Lab, tmp_path: Path, annotation: str) -> None:
    """Token weights and the retention's start are those of the start model, also in the process that resumes."""

    def words(runs: Path) -> list[str]:
        more = ["stage.max_steps=5", "stage.save_every_steps=2", "stage.ratio=0.9", "stage.min_prob=0.0001"]
        return ["stage=nlft", *lab.common(runs), "model.max_length=256", f"stage.annotation={annotation}", *more]

    kill_at(words(tmp_path / "runs"), "nlft:step:3", tmp_path)
    assert run_apart(words(tmp_path / "runs"), tmp_path / "last.txt") == 0, (tmp_path / "last.txt").read_text()
    assert "resumed from step-00000002: 2 of 5" in (tmp_path / "last.txt").read_text()
    assert run_apart(words(tmp_path / "straight"), tmp_path / "out.txt") == 0
    killed, straight = only_folder(tmp_path / "runs", "nlft"), only_folder(tmp_path / "straight", "nlft")
    assert_same(killed, straight)
    results = [read_json(folder / "result.json")["retention"] for folder in (killed, straight)]
    assert results[0] == results[1] and results[0][1]["after"] > 0


@pytest.mark.slow
def test_ppo_killed_in_every_stage(lab: Lab, tmp_path: Path) -> None:
    """Mid-epoch, at the end of an epoch, after the last checkpoint; the adaptive KL coefficient moves all the while."""
    more = ["stage.kl_target=0.5", "stage.kl_horizon=50", "stage.inner_epochs=2", "stage.minibatches=2"]
    again = lab.rlhf(tmp_path / "runs", "ppo", *more)
    kill_at(again, "sft:step:2", tmp_path)
    assert "stage 1 of 3: sft: resuming" in kill_at(again, "reward:checkpoint:2", tmp_path)
    text = kill_at(again, "rlhf:step:3", tmp_path)  # mid-epoch
    assert "stage 1 of 3: sft: reused" in text and "resumed from step-00000002: 2 of 3 steps were done" in text
    assert "resumed from step-00000002: 2 of 6" in kill_at(again, "rlhf:checkpoint:4", tmp_path)  # end of an epoch
    assert "resumed from step-00000004: 4 of 6" in kill_at(again, "rlhf:eval:6", tmp_path)  # nothing left but the end
    assert run_apart(again, tmp_path / "last.txt") == 0
    assert "resumed from step-00000006: 6 of 6" in (tmp_path / "last.txt").read_text()
    assert run_apart(lab.rlhf(tmp_path / "straight", "ppo", *more), tmp_path / "out.txt") == 0
    for stage, count in (("sft", 3), ("reward", 3), ("rlhf", 6)):
        folder = only_folder(tmp_path / "runs", stage)
        assert_same(folder, only_folder(tmp_path / "straight", stage))
        assert steps(folder) == list(range(1, count + 1))
    assert read_json(folder / "result.json")["resumed_at"] == [2, 4, 6]
    assert len({row["rlhf/kl_coef"] for row in rows(folder / "metrics.jsonl") if "rlhf/kl_coef" in row}) == 6
    assert "resumed from step-00000004" in (folder / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_other_algorithms_killed_at_the_end_of_an_epoch(lab: Lab, tmp_path: Path, algorithm: str) -> None:
    again = lab.rlhf(tmp_path / "runs", algorithm)
    kill_at(again, "rlhf:checkpoint:4", tmp_path)
    # The straight run takes the same earlier stages.
    shutil.copytree(tmp_path / "runs", tmp_path / "straight")
    shutil.rmtree(only_folder(tmp_path / "straight", "rlhf"))
    assert run_apart(again, tmp_path / "out.txt") == 0
    assert run_apart(lab.rlhf(tmp_path / "straight", algorithm), tmp_path / "out.txt") == 0
    assert "sft: reused from" in (tmp_path / "out.txt").read_text()
    assert_same(only_folder(tmp_path / "runs", "rlhf"), only_folder(tmp_path / "straight", "rlhf"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sft:eval:5", "sft:step:1"])
def test_killed_without_a_checkpoint_of_that_step(lab: Lab, straight_sft: Path, tmp_path: Path, place: str) -> None:
    """Behind the last step, which had no checkpoint; and before the first checkpoint, where nothing can be resumed."""
    again = lab.sft(tmp_path / "runs")
    kill_at(again, place, tmp_path)
    assert run_apart(again, tmp_path / "out.txt") == 0
    found = run_folders(tmp_path / "runs", "sft")
    assert len(found) == (1 if place == "sft:eval:5" else 2)
    done = next(folder for folder in found if (folder / "result.json").exists())
    assert_same(done, straight_sft)


@pytest.mark.slow
def test_killed_behind_the_result(lab: Lab, tmp_path: Path) -> None:
    """The artifact stands: it is reused, and report and checkpoints are put in order."""
    again = lab.sft(tmp_path / "runs")
    kill_at(again, "sft:end:5", tmp_path)
    folder = only_folder(tmp_path / "runs", "sft")
    assert not (folder / "report.html").exists() and list((folder / "checkpoints").iterdir())
    assert run_apart(again, tmp_path / "out.txt") == 0
    assert "reused from" in (tmp_path / "out.txt").read_text()
    assert (folder / "report.html").exists() and not list((folder / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_adapters_killed(lab: Lab, tmp_path: Path, method: str) -> None:
    """AdaLoRA takes rank away while it trains; what it has taken is part of the state."""
    more = [f"peft={method}", "stage.max_steps=12", "stage.lr=1e-2"]
    kill_at(lab.sft(tmp_path / "runs", *more), "sft:step:9", tmp_path)
    assert run_apart(lab.sft(tmp_path / "runs", *more), tmp_path / "out.txt") == 0, (tmp_path / "out.txt").read_text()
    assert "resumed from step-00000008" in (tmp_path / "out.txt").read_text()
    assert run_apart(lab.sft(tmp_path / "straight", *more), tmp_path / "out.txt") == 0
    assert_same(only_folder(tmp_path / "runs", "sft"), only_folder(tmp_path / "straight", "sft"))


def _die_in_the_second_checkpoint() -> None:
    save_file, calls = core.training.checkpoint.save_file, []

    def dying(tensors: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of it")
            os._exit(9)
        save_file(tensors, path)

    core.training.checkpoint.save_file = dying  # type: ignore[assignment]


@pytest.mark.slow
def test_death_while_a_checkpoint_is_written(lab: Lab, straight_sft: Path, tmp_path: Path) -> None:
    again = lab.sft(tmp_path / "runs")
    assert run_apart(again, tmp_path / "out.txt", prepare=_die_in_the_second_checkpoint) == 9
    checkpoints = only_folder(tmp_path / "runs", "sft") / "checkpoints"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000002"]
    assert run_apart(again, tmp_path / "out.txt") == 0
    assert "resumed from step-00000002" in (tmp_path / "out.txt").read_text()
    assert_same(only_folder(tmp_path / "runs", "sft"), straight_sft)
    assert not list(checkpoints.iterdir())


# ---- damaged checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_sft(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs with one that was killed at step 5, with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("killed_sft")
    kill_at(lab.sft(folder / "runs"), "sft:step:5", folder)
    return folder / "runs"


def _cut(path: Path) -> None:
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[: len(data) // 2])


DAMAGE = {
    "cut": _cut,
    "deleted": lambda path: (path / "state.safetensors").unlink(),
    "garbage": lambda path: (path / "state.json").write_text("{]"),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "other manifest": lambda path: (path / "manifest.json").write_text("[]"),
    "empty manifest": lambda path: (path / "manifest.json").write_text("{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_noticed(
    lab: Lab, tiny_cli, straight_sft: Path, killed_sft: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(killed_sft, tmp_path / "runs")
    folder = only_folder(tmp_path / "runs", "sft")
    DAMAGE[kind](folder / "checkpoints" / "step-00000004")
    outcome = tiny_cli(lab.sft(tmp_path / "runs"))
    assert outcome.code == 0, outcome.err
    assert "the checkpoint step-00000004 is damaged and left out" in outcome.out
    assert "resumed from step-00000002: 2 of 5 steps were done" in outcome.out
    assert_same(folder, straight_sft)
    assert any("step-00000004 is damaged" in line for line in read_json(folder / "result.json")["warnings"])


@pytest.mark.slow
def test_all_checkpoints_damaged(lab: Lab, tiny_cli, straight_sft: Path, killed_sft: Path, tmp_path: Path) -> None:
    shutil.copytree(killed_sft, tmp_path / "runs")
    folder = only_folder(tmp_path / "runs", "sft")
    for path in (folder / "checkpoints").iterdir():
        _cut(path)
    outcome = tiny_cli(lab.sft(tmp_path / "runs"))
    assert outcome.code == 0, outcome.err
    assert "no whole checkpoint is left; the run starts from its first step" in outcome.out
    assert_same(folder, straight_sft)
    assert steps(folder) == [1, 2, 3, 4, 5]


# ---- checkpoints by themselves --------------------------------------------------------------------------------------


def _save(folder: Path, step: int, keep: int = 2) -> Path:
    import torch

    return core.training.checkpoint.save_checkpoint(
        folder, step, {"a": torch.full((3,), float(step))}, {"x": step}, keep
    )


def test_the_last_few_are_kept_and_later_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        _save(tmp_path, step)
    (tmp_path / ".step-00000009.part").mkdir()
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000003", "step-00000009"]
    _save(tmp_path, 4)  # a resumed run that passed step 9 over
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    found, notes = core.training.checkpoint.load_checkpoint(tmp_path)
    assert found is not None and found[2]["step"] == found[2]["x"] == 4 and notes == []
    assert found[1]["a"].tolist() == [4.0] * 3


def test_a_failing_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)

    def failing(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("interrupted")

    monkeypatch.setattr(core.training.checkpoint, "save_file", failing)
    with pytest.raises(RuntimeError):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert core.training.checkpoint.damage(tmp_path / "step-00000001") is None


def test_manifest_covers_both_files(tmp_path: Path) -> None:
    manifest = json.loads((_save(tmp_path, 1) / "manifest.json").read_text())
    assert sorted(manifest) == ["state.json", "state.safetensors"]
