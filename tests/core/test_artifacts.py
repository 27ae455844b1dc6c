"""The run folder as a contract, the verification of artifacts, full disks, and plans that touch nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from run_kit import Lab, only_folder, read_json, rows, run_folders, steps, verify_here

import core.artifacts.artifact
import core.files
import core.jsonl
import core.training.checkpoint
from core.planning.ledger import artifact_fault
from core.settings.schema import ModelConfig
from core.testing.run import StageRunner
from core.tokens.codec import load_codec

CONTRACT = {
    "plan.json", "config.yaml", "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "artifact",
    "artifact.json", "result.json", "report.html", "report.md", "log.txt",
}  # fmt: skip
ALLOWED = {"quarantine.jsonl", ".lock", "wandb"}


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "rlhf"])
def test_a_finished_folder_holds_the_names_of_the_contract(finished: Path, stage: str) -> None:
    folder = only_folder(finished, stage)
    names = {path.name for path in folder.iterdir()}
    assert names >= CONTRACT and names <= CONTRACT | ALLOWED
    assert list((folder / "checkpoints").iterdir()) == []
    for name in ("plan.json", "config.json", "artifact.json", "result.json"):
        assert read_json(folder / name)["version"] >= 1, name
    for row in rows(folder / "metrics.jsonl"):
        assert {"step", "tokens_seen", "time_s"} <= set(row)
        assert all(name.startswith((f"{stage}/", "eval/")) for name in set(row) - {"step", "tokens_seen", "time_s"})
    if stage != "reward":
        assert {"before", "after"} <= {row["when"] for row in rows(folder / "samples.jsonl")}
    inside = {path.name for path in (folder / "artifact").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= inside
    assert ("generation_config.json" in inside) == (stage != "reward")
    log = (folder / "log.txt").read_text()
    assert "running in" in log and "done: " in log
    artifact = read_json(folder / "artifact.json")
    assert set(artifact["files"]) == set(artifact["sizes"]) == inside and artifact_fault(folder) is None
    assert [parent["stage"] for parent in artifact["parents"]] == {
        "sft": [], "reward": ["sft"], "rlhf": ["sft", "reward"]}[stage]  # fmt: skip


@pytest.mark.slow
def test_no_secret_is_written(lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t" * 6
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, secret)
    outcome = tiny_cli(lab.sft(tmp_path / "runs", "stage.max_steps=1"))
    assert outcome.code == 0 and secret not in outcome.out + outcome.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


# ---- verification ---------------------------------------------------------------------------------------------------


def _change_weight(folder: Path, name: str = "", drop: str = "") -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = {key: value for key, value in tensors.items() if not drop or drop not in key}
    for key, value in tensors.items():
        if name and name in key:
            value.view(-1)[0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})


def _no_end(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token_id"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))


TAMPERED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weight": ("sft", lambda folder: _change_weight(folder, "layers.0.mlp.down_proj"), "logits"),
    "no layer": ("sft", lambda folder: _change_weight(folder, drop="layers.1.mlp.up"), "every weight is in the files"),
    "no end": ("sft", _no_end, "generation config ends at the end-of-turn token"),
    "no head": ("reward", lambda folder: _change_weight(folder, drop="score"), "every weight is in the files"),
    "head": ("reward", lambda folder: _change_weight(folder, "score"), "scores"),
    "cut": ("sft", lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "reload"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TAMPERED)
def test_what_differs_from_memory_does_not_pass(
    lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stage, tamper, check = TAMPERED[kind]
    process = core.artifacts.artifact.verify_in_fresh_process

    def tampering(job: dict[str, Any]) -> dict[str, Any]:
        tamper(Path(job["folder"]))
        return real(job) if kind == "cut" else process(job)

    monkeypatch.setattr(core.artifacts.artifact, "verify_in_fresh_process", tampering)
    runs = tmp_path / "runs"
    arguments = [f"stage={stage}", *lab.common(runs), "stage.max_steps=2", "stage.save_every_steps=1"]
    outcome = tiny_cli(arguments if stage == "sft" else [*arguments, "pipeline.stages=[reward]"])
    assert outcome.code == 1
    assert "the artifact did not pass its verification" in outcome.err and check in outcome.err
    folder = only_folder(runs, stage)
    assert read_json(folder / "result.json")["verified"] is False
    assert read_json(folder / "artifact.json")["verification"]["ok"] is False
    assert (folder / "report.html").exists()
    # Not reused; the way back was kept, and from there it is made and verified again.
    monkeypatch.setattr(core.artifacts.artifact, "verify_in_fresh_process", verify_here)
    again = tiny_cli(arguments if stage == "sft" else [*arguments, "pipeline.stages=[reward]"])
    assert again.code == 0 and "resumed from step-00000002: 2 of 2" in again.out
    assert "did not pass its verification" in again.out
    assert read_json(folder / "result.json")["verified"] is True
    assert list((folder / "checkpoints").iterdir()) == []


real = core.artifacts.artifact.verify_in_fresh_process


@pytest.mark.slow
def test_a_scorer_without_head_is_refused(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    """transformers would draw the head at random, and PPO would follow it."""
    outcome = tiny_cli(lab.rlhf(tmp_path / "runs", "grpo", f"reward.source={lab.model}", "pipeline.stages=[rlhf]"))
    assert outcome.code == 2 and "no scoring head" in outcome.err


@pytest.mark.slow
def test_a_folder_named_core_where_the_run_starts_does_not_answer(
    lab: Lab, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('the wrong core')")
    monkeypatch.chdir(tmp_path)
    job = {"folder": str(tmp_path), "expected": "none", "makes": "policy", "dtype": "float32", "ends": [2], "pad": 0,
           "threads": 1, "quant": "none", "device": "cpu"}  # fmt: skip
    answer = real(job)
    assert not answer["ok"] and "wrong core" not in str(answer)


# ---- a disk that refuses --------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow over `size` bytes: the kernel refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused(outcome: Any, path: str) -> None:
    assert outcome.code == 1, outcome.err
    assert outcome.err.startswith("error: could not write")
    assert path in outcome.err and "mend:" in outcome.err


def assert_nothing_half_written(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if path.name.endswith((".part", ".draft")) or "probe" in path.name]
    assert left == []
    for path in (*folder.glob("*.jsonl"), *folder.glob("*.json")):
        assert path.read_bytes() == b"" or path.read_bytes().endswith(b"\n"), path


@pytest.mark.slow
@pytest.mark.parametrize("where", ["checkpoint", "export"])
def test_files_that_cannot_grow(lab: Lab, tiny_cli, tmp_path: Path, where: str) -> None:
    runs = tmp_path / "runs"
    arguments = lab.sft(runs, f"stage.save_every_steps={2 if where == 'checkpoint' else 0}")
    with files_of_at_most(200_000):
        outcome = tiny_cli(arguments)
    folder = only_folder(runs, "sft")
    assert_refused(outcome, str(folder / ("checkpoints/step-00000002" if where == "checkpoint" else "artifact")))
    assert_nothing_half_written(folder)
    assert not (folder / "artifact").exists() and list((folder / "checkpoints").iterdir()) == []
    assert "could not write" in (folder / "log.txt").read_text()
    assert tiny_cli(arguments).code == 0


@pytest.mark.slow
def test_a_full_disk_at_the_second_checkpoint_keeps_the_first(
    lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, calls = core.training.checkpoint.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(core.training.checkpoint, "save_file", full)
    outcome = tiny_cli(lab.sft(tmp_path / "runs"))
    folder = only_folder(tmp_path / "runs", "sft")
    assert_refused(outcome, str(folder / "checkpoints" / "step-00000004"))
    assert "No space left on device" in outcome.err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    again = tiny_cli(lab.sft(tmp_path / "runs"))
    assert again.code == 0 and "resumed from step-00000002" in again.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_full_disk_under_the_growing_files(
    lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk takes half a row and no more; after that not even the log can grow."""
    state = {"full": False, "rows": 0}

    class Full(core.jsonl.io.FileIO):
        def write(self, data: Any) -> int:
            state["rows"] += str(self.name).endswith(name)
            if state["rows"] < 4:
                return super().write(data)
            if not state["full"]:
                state["full"] = True
                return super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(core.jsonl.io, "FileIO", Full)
    outcome = tiny_cli(lab.sft(tmp_path / "runs"))
    folder = only_folder(tmp_path / "runs", "sft")
    assert_refused(outcome, str(folder / name))
    assert_nothing_half_written(folder)
    assert all(rows(folder / file) for file in ("metrics.jsonl", "samples.jsonl"))
    monkeypatch.undo()
    monkeypatch.setattr(core.artifacts.artifact, "verify_in_fresh_process", verify_here)
    assert tiny_cli(lab.sft(tmp_path / "runs")).code == 0
    assert steps(run_folders(tmp_path / "runs", "sft")[-1]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (Exception("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (Exception("File too large (os error 27)"), errno.EFBIG),
        (ValueError("a bug"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_refusals_of_a_disk_are_told_from_other_faults(error: BaseException, code: int | None) -> None:
    found = core.files.disk_refusal(error)
    assert (found.errno if found else None) == code


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_have_the_permissions_of_the_files_beside_them(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors writes for the owner alone."""
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        with core.files.atomic_folder(tmp_path / "a") as part:
            (part / "inner").mkdir()
            save_file({"w": torch.zeros(2)}, part / "inner" / "model.safetensors")
            (part / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {
        "model.safetensors": mode, "config.json": mode,
    }  # fmt: skip


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(core.files.ArtifactError), core.files.atomic_folder(tmp_path / "a") as part:
        (part / "x").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyboardInterrupt), core.files.atomic_folder(tmp_path / "a") as part:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# ---- a plan that touches nothing ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "dpo"])
def test_a_dry_run_writes_nothing_and_loads_no_weights(
    lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    import torch

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    bare = Lab(tmp_path / "model", lab.data)
    shutil.copytree(lab.model, bare.model)
    (bare.model / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    outcome = tiny_cli(bare.rlhf(tmp_path / "runs", algorithm, "dry_run=true"))
    assert outcome.code == 0, outcome.err
    assert "sft" in outcome.out and f"rlhf ({algorithm})" in outcome.out and "tokens trained" in outcome.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_every_end_of_the_model_is_kept_and_stopped_at(stage_runner: StageRunner, tmp_path: Path) -> None:
    """Llama 3, Gemma and Phi 3 name several tokens that end a text."""
    folder = Path(shutil.copytree(stage_runner.lab.model, tmp_path / "model"))
    config = json.loads((folder / "generation_config.json").read_text())
    turn = config["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0, 9, turn]}))
    done = stage_runner("stage=sft", "stage.max_steps=1", f"model.source={folder}").assert_ok()
    saved = json.loads((done.artifact / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [turn, 0, 9]
    assert load_codec(done.artifact, ModelConfig(source=str(done.artifact))).ends == (turn, 0, 9)
