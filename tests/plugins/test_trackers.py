"""The trackers against the real libraries: an offline W&B run read back from its file, TensorBoard events read back."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest

from core.api import PROJECT, ConfigError, StageResult
from core.platform.hookspecs import ObserverHooks
from core.platform.observers import Observers
from plugins.tracker_tensorboard import TensorboardConfig
from plugins.tracker_wandb import WandbConfig, WandbMode
from plugins.tracker_wandb.tracker import WandbTracker, artifact_name, choose_mode, has_api_key

KEY = "e37b90d2f518" + "0" * 52
ROWS = [
    {"when": "after", "step": 3, "index": i, "prompt": f"What is {i} + 1?", "completion": f"{i + 1} <b>&</b>",
     "answer": str(i + 1), "score": 1.0, "reward": None}
    for i in range(3)
]  # fmt: skip
RESULT = StageResult("rlhf", "ppo", "held-out accuracy", before=0.45, after=0.81, interval=[0.72, 0.88],
                     reward_before=None, steps=3, verified=True)  # fmt: skip


def make_run(folder: Path) -> Any:
    """What a tracker may read of a run, see core.api.Run."""
    (folder / "artifact").mkdir(parents=True)
    (folder / "artifact" / "model.safetensors").write_bytes(b"weights")
    (folder / "artifact.json").write_text('{"version": 1}')
    about = {"owner": {"distribution": "preftune"}, "data": {"quarantined": 0}}
    plan = SimpleNamespace(stage="rlhf", algorithm="ppo", key=KEY)
    return SimpleNamespace(folder=folder, plan=plan, plan_json=about, cfg=None,
                           config_json={"stage": {"lr": 2e-5, "max_steps": 3}},
                           group="night", name="rlhf",
                           parents=[{"stage": "sft", "key": "5d0c7a91be44", "run_dir": "runs/sft"}])  # fmt: skip


def observers(tracker: Any) -> Observers:
    """The tracker as the platform calls it; anything that it raises fails the test."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ObserverHooks)
    manager.register(tracker, name="tracker")
    manager.check_pending()
    return Observers(manager, warn=pytest.fail)


def drive(tracker: Any, run: Any) -> None:
    """A run of three steps with an evaluation at both ends."""
    calls = observers(tracker)
    calls.on_run_start(run)
    calls.on_eval_end(run, 0, {"eval/score": 0.45})
    for step in (1, 2, 3):
        calls.on_step_end(run, step, {"rlhf/loss": 1.0 / step, "rlhf/kl": 0.01 * step})
    calls.on_samples(run, 3, ROWS)
    calls.on_eval_end(run, 3, {"score": 0.81})
    calls.on_run_end(run, RESULT)


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: a 7-byte header, then blocks of 32 KiB with chunks of crc, length, kind and bytes;
    kind 1 is a whole record, 2, 3 and 4 its first, middle and last part."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished_records(path: Path) -> list[Any]:
    """All records; W&B's service may close the file a moment after `finish` returned."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = list(wandb_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"no exit record in {path}")


def items(pairs: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in pairs}


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.parametrize("files", [False, True])
def test_wandb_offline_run_is_written_and_read_back(
    tmp_path: Path, no_account: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # as in a run whose rollout engine is vLLM
    monkeypatch.delenv("WANDB_DISABLE_WEAVE", raising=False)
    run = make_run(tmp_path / "12-00-00-rlhf")
    drive(WandbTracker(WandbConfig(tags=["small"], log_artifacts=files)), run)
    out = capfd.readouterr()
    assert out.out + out.err == "", "the console belongs to the run"

    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    records = finished_records(path)
    kinds = [record.WhichOneof("record_type") for record in records]
    assert {"run", "history", "summary", "artifact", "exit"} <= set(kinds)
    history = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    losses = {row["step"]: row["rlhf/loss"] for row in history if "rlhf/loss" in row}
    assert losses == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    scores = {row["step"]: row["eval/score"] for row in history if "eval/score" in row}
    assert scores == {0: 0.45, 3: 0.81}
    assert any("samples/latest" in name for row in history for name in row)

    header = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (header.run_group, header.job_type, header.project, list(header.tags)) == (
        "night", "rlhf", "preftune", ["small"])  # fmt: skip
    config = items(header.config.update)
    assert config["stage"] == {"lr": 2e-5, "max_steps": 3}
    assert config["preftune"]["parents"][0]["stage"] == "sft"
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary["result/after"] == 0.81
    assert summary["result/interval_high"] == 0.88
    models = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    (model,) = [artifact for artifact in models if artifact.name == artifact_name("rlhf", KEY)]
    entries = {entry.path: entry for entry in model.manifest.contents}
    assert ("model.safetensors" in entries) is files
    assert "artifact.json" in entries
    assert json.loads(model.metadata)["parents"] == ["sft 5d0c7a91be44"]
    (exit_,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert exit_.exit_code == 0
    tables = [json.loads(found.read_text()) for found in path.parent.rglob("*.table.json")]
    assert any(row[:5] == ["after", 3, 0, "What is 0 + 1?", "1 <b>&</b>"] for table in tables for row in table["data"])


def test_wandb_closes_a_failed_run(tmp_path: Path, no_account: None) -> None:
    run = make_run(tmp_path / "run")
    tracker = observers(WandbTracker(WandbConfig()))
    tracker.on_run_start(run)
    tracker.on_run_error(run, "train", 2, RuntimeError("loss is not finite"))
    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    (exit_,) = [record.exit for record in finished_records(path) if record.WhichOneof("record_type") == "exit"]
    assert exit_.exit_code == 1
    tracker.on_step_end(run, 3, {"rlhf/loss": 1.0})  # after the end there is nothing to log to


def test_wandb_disabled_does_nothing(tmp_path: Path, no_account: None) -> None:
    run = make_run(tmp_path / "run")
    drive(WandbTracker(WandbConfig(mode=WandbMode.disabled)), run)
    assert not (run.folder / "wandb").exists()


def test_wandb_mode_follows_key_and_environment(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    bare = {"NETRC": str(netrc)}
    assert not has_api_key(bare)
    assert choose_mode(WandbMode.auto, bare) is WandbMode.offline
    assert choose_mode(WandbMode.auto, {**bare, "WANDB_API_KEY": "k" * 40}) is WandbMode.online
    assert choose_mode(WandbMode.auto, {**bare, "WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}) is WandbMode.disabled
    netrc.write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert choose_mode(WandbMode.auto, bare) is WandbMode.online
    assert choose_mode(WandbMode.auto, {**bare, "WANDB_BASE_URL": "https://wandb.example.org"}) is WandbMode.offline
    netrc.write_text("not a netrc file {")
    assert choose_mode(WandbMode.auto, bare) is WandbMode.offline
    with pytest.raises(ConfigError, match="no W&B API key"):
        choose_mode(WandbMode.online, bare)


def test_tensorboard_events_are_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from plugins.tracker_tensorboard.tracker import TensorboardTracker

    run = make_run(tmp_path / "run")
    tracker = TensorboardTracker(TensorboardConfig())
    drive(tracker, run)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("rlhf/loss")] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]  # fmt: skip
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("eval/score")] == [(0, 0.45), (3, 0.81)]
    assert events.Scalars("result/after")[0].value == pytest.approx(0.81)
    text = events.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    1 <b>&</b>" in text
    assert "max_steps" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_resume_shows_one_line(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from plugins.tracker_tensorboard.tracker import TensorboardTracker

    run = make_run(tmp_path / "run")
    for first, value in ((1, 1.0), (2, 5.0)):
        tracker = observers(TensorboardTracker(TensorboardConfig()))
        tracker.on_run_start(run)
        for step in range(first, 4):
            tracker.on_step_end(run, step, {"rlhf/loss": value, "rlhf/kl": math.nan})
        tracker.on_run_error(run, "train", 3, KeyboardInterrupt())
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("rlhf/loss")] == [(1, 1.0), (2, 5.0), (3, 5.0)]


@pytest.mark.parametrize("plugin", ["tracker_wandb", "tracker_tensorboard"])
def test_entry_modules_are_light(plugin: str) -> None:
    code = (
        f"import sys, plugins.{plugin} as p; (spec,) = p.register_trackers(); "
        "heavy = {'torch', 'wandb', 'tensorboard', 'hydra', 'transformers'} & set(sys.modules); "
        f"assert not heavy, heavy; assert spec.impl.startswith('plugins.{plugin}.tracker:')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
