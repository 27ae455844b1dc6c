"""What is reused, what is resumed, what runs anew, and that no two processes do the same work at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_kit import Lab, kill_at, only_folder, read_json, run_folders

from core.config.typed import typed_config
from core.errors import ArtifactError
from core.planning.ledger import Ledger, artifact_fault, lock_folder
from core.planning.make import make_plan


def states(arguments: list[str]) -> dict[str, str]:
    """Stage to what the plan would do with it."""
    cfg, registry, _ = typed_config(arguments)
    return {stage.stage: stage.state for stage in make_plan(cfg, registry).stages}


def keys(arguments: list[str]) -> dict[str, str]:
    cfg, registry, _ = typed_config(arguments)
    return {stage.stage: stage.key for stage in make_plan(cfg, registry).stages}


# ---- reuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_chain_is_reused_as_a_whole(lab: Lab, finished: Path, tiny_cli) -> None:
    outcome = tiny_cli(lab.rlhf(finished, "ppo"))
    assert outcome.code == 0
    for number, stage in enumerate(("sft", "reward", "rlhf (ppo)"), 1):
        assert f"stage {number} of 3: {stage}: reused from" in outcome.out
    assert outcome.out.count("reuse=false runs it anew") == 3
    assert len(run_folders(finished, "")) == 3


REUSED = {"sft": "reuse", "reward": "reuse", "rlhf": "reuse"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["stage.lr=1e-4"], REUSED | {"rlhf": "run"}),
        (["stage.save_every_steps=3", "stage.keep_checkpoints=5"], REUSED),
        (["tracker=tensorboard"], REUSED),
        (["group=tuesday"], REUSED),
        (["upstream.reward.lr=1e-4"], {"sft": "reuse", "reward": "run", "rlhf": "run"}),
        (["upstream.sft.lr=1e-4"], dict.fromkeys(REUSED, "run")),
        (["runtime.seed=3"], dict.fromkeys(REUSED, "run")),
        (["reuse=false"], dict.fromkeys(REUSED, "run")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_change_runs_anew(lab: Lab, finished: Path, change: list[str], expected: dict[str, str]) -> None:
    assert states(lab.rlhf(finished, "ppo", *change)) == expected


@pytest.mark.slow
def test_reuse_false_makes_a_second_folder(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    arguments = lab.sft(tmp_path / "runs", "stage.max_steps=1")
    assert tiny_cli(arguments).code == 0
    assert "reused" not in tiny_cli([*arguments, "reuse=false"]).out
    assert len(run_folders(tmp_path / "runs", "sft")) == 2
    assert f"reused from {run_folders(tmp_path / 'runs', 'sft')[1]}" in tiny_cli(arguments).out


def test_contents_make_the_key_and_names_do_not(lab: Lab, tmp_path: Path) -> None:
    before = keys(lab.sft(tmp_path))
    moved = Lab(tmp_path / "model", tmp_path / "data")
    shutil.copytree(lab.model, moved.model)
    shutil.copytree(lab.data, moved.data)
    assert keys(moved.sft(tmp_path)) == before
    rows = (moved.data / "preference.jsonl").read_text()
    (moved.data / "preference.jsonl").write_text(rows.replace('"chosen": "two"', '"chosen": "ten"', 1))
    assert keys(moved.sft(tmp_path)) != before
    (moved.data / "preference.jsonl").write_text(rows)
    assert keys(moved.sft(tmp_path)) == before
    weights = bytearray((moved.model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved.model / "model.safetensors").write_bytes(weights)
    assert keys(moved.sft(tmp_path)) != before


def test_the_text_of_a_chat_template_is_part_of_the_key(lab: Lab, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text((lab.model / "chat_template.jinja").read_text())
    arguments = lab.sft(tmp_path, f"model.chat_template={template}")
    before = keys(arguments)
    template.write_text(template.read_text().replace("user", "User") + "\n")
    assert keys(arguments) != before


@pytest.mark.slow
def test_the_weights_of_a_named_reward_model_are_part_of_the_key(lab: Lab, finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "scorer"
    shutil.copytree(only_folder(finished, "reward") / "artifact", source)
    arguments = lab.rlhf(tmp_path, "grpo", f"reward.source={source}", "pipeline.stages=[rlhf]")
    before = keys(arguments)
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    assert keys(arguments) != before


# ---- not reused -----------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


ALTERED = {
    "flipped bit": lambda folder: _flip(folder / "artifact" / "model.safetensors"),
    "cut": lambda folder: (folder / "artifact" / "model.safetensors").write_bytes(b"x"),
    "deleted": lambda folder: (folder / "artifact" / "tokenizer.json").unlink(),
    "edited config": lambda folder: (folder / "artifact" / "config.json").write_text("{}"),
    "no record": lambda folder: (folder / "artifact.json").unlink(),
    "torn record": lambda folder: (folder / "artifact.json").write_text('{"version": 1, "key"'),
    "no result": lambda folder: (folder / "result.json").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_artifact_is_not_reused(lab: Lab, finished: Path, tmp_path: Path, kind: str) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    ALTERED[kind](only_folder(runs, "sft"))
    cfg, registry, _ = typed_config(lab.rlhf(runs, "ppo"))
    sft, reward, _ = make_plan(cfg, registry).stages
    assert (sft.state, reward.state) == ("run", "reuse")
    if kind in ("flipped bit", "cut", "deleted", "edited config"):
        (note,) = sft.warnings
        assert "is not reused" in note and ("was altered after it was verified" in note or "is missing" in note)


@pytest.mark.slow
def test_an_altered_parent_is_made_again_with_a_line(lab: Lab, finished: Path, tiny_cli, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    _flip(only_folder(runs, "sft") / "artifact" / "model.safetensors")
    outcome = tiny_cli(lab.rlhf(runs, "ppo"))
    assert outcome.code == 0
    assert "was altered after it was verified" in outcome.out
    assert "stage 1 of 3: sft: running in" in outcome.out and "stage 2 of 3: reward: reused" in outcome.out
    assert artifact_fault(run_folders(runs, "sft")[-1]) is None


@pytest.mark.slow
def test_an_altered_artifact_is_not_taken_as_model_or_reward(
    lab: Lab, finished: Path, tiny_cli, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    sft, reward = only_folder(runs, "sft"), only_folder(runs, "reward")
    good = lab.sft(tmp_path / "more", f"model.source={sft}", "stage.max_steps=1")
    assert tiny_cli(good).code == 0
    _flip(sft / "artifact" / "model.safetensors")
    _flip(reward / "artifact" / "model.safetensors")
    shutil.rmtree(tmp_path / "more")
    for arguments in (good, lab.rlhf(tmp_path / "more", "grpo", f"reward.source={reward}")):
        outcome = tiny_cli(arguments)
        assert outcome.code == 2
        assert "may not be read" in outcome.err and "was altered after it was verified" in outcome.err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("entry", ["", "{]", "[]", '{"run_dir": null}', '{"run_dir": "gone"}'])
def test_an_index_entry_that_says_nothing_counts_as_none(tmp_path: Path, entry: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.index.mkdir()
    (ledger.index / "k.json").write_text(entry)
    assert ledger.lookup("k") == ("run", None, "")


def test_folders_made_in_the_same_second_have_names_of_their_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    folders = [ledger.open_folder("sft") for _ in range(3)]
    assert len(set(folders)) == 3
    assert not list(tmp_path.glob(".index/*"))  # not found by anyone before the first step
    ledger.enter("k", folders[1])
    assert json.loads((ledger.index / "k.json").read_text())["version"] == 1
    (folders[1] / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert ledger.lookup("k") == ("resume", folders[1], "")


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_locks_hold_across_processes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    folder = ledger.open_folder("sft")
    code = "import sys; from pathlib import Path; from core.planning.ledger import *\n"
    code += (
        "held = Ledger(Path(sys.argv[1])).lock('k'), lock_folder(Path(sys.argv[2]))\nprint('held', flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another process is working on this run") as caught:
            ledger.lock("k")
        assert str(tmp_path) in caught.value.where and "reuse=false" in caught.value.mend
        with pytest.raises(ArtifactError, match="another process"):
            lock_folder(folder)
        ledger.lock("other").close()
        process.kill()
    ledger.lock("k").close()  # a lock ends with its process
    lock_folder(folder).close()


@pytest.mark.slow
def test_the_same_command_twice_at_a_time(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    """Also before the first checkpoint, when there is nothing yet that the second could resume."""
    ledger = Ledger(tmp_path / "runs")
    arguments = lab.sft(tmp_path / "runs", "stage.max_steps=1")
    with ledger.lock(keys(arguments)["sft"]):
        outcome = tiny_cli(arguments)
        assert outcome.code == 1
        assert "another process is working on this run" in outcome.err
        assert run_folders(tmp_path / "runs", "sft") == []
        assert tiny_cli([*arguments, "reuse=false"]).code == 0
    assert "reused from" in tiny_cli(arguments).out


@pytest.mark.slow
def test_work_done_since_the_plan_is_taken(lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands share a stage: the one that comes later to it takes what the other has finished meanwhile."""
    arguments = lab.sft(tmp_path / "runs", "stage.max_steps=1")
    assert tiny_cli(arguments).code == 0
    lookup, calls = Ledger.lookup, []

    def blind_at_first(ledger: Ledger, key: str):
        calls.append(key)
        return lookup(ledger, "none" if len(calls) == 1 else key)

    monkeypatch.setattr(Ledger, "lookup", blind_at_first)
    outcome = tiny_cli(arguments)
    assert outcome.code == 0 and "reused from" in outcome.out
    assert len(run_folders(tmp_path / "runs", "sft")) == 1


@pytest.mark.slow
def test_a_resumed_run_tells_its_state_in_the_plan(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    kill_at(lab.sft(tmp_path / "runs"), "sft:step:3", tmp_path)
    assert states(lab.sft(tmp_path / "runs")) == {"sft": "resume"}
    assert states(lab.sft(tmp_path / "runs", "reuse=false")) == {"sft": "run"}
    assert tiny_cli(lab.sft(tmp_path / "runs")).code == 0
    plan = read_json(only_folder(tmp_path / "runs", "sft") / "plan.json")
    assert plan["stages"][0]["state"] == "resume"
