"""What is wrong with the data, the model or the machine is told in three lines, and leaves nothing half done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_kit import FAKES, Lab, only_folder, read_json, rows, run_folders

GOOD = [
    {"prompt": f"Name the number after one {index}", "chosen": "two", "rejected": "three", "answer": "two"}
    for index in range(40)
]


def lines(*values: Any) -> bytes:
    """JSON Lines; bytes and texts stand as they are."""
    parts = [
        value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
        for value in values
    ]
    return b"\n".join(parts) + b"\n"


def arguments_for(lab: Lab, runs: Path, stage: str = "sft", **changes: str) -> list[str]:
    """A run of one short stage."""
    algorithm = ["algorithm=grpo", "stage.max_new_tokens=6", "stage.group_size=2"] if stage == "rlhf" else []
    settings = dict(item.split("=", 1) for item in lab.common(runs))
    settings |= {"stage.max_steps": "2", "pipeline.stages": f"[{stage}]"} | changes
    return [f"stage={stage}", *algorithm, *(f"{key}={value}" for key, value in settings.items())]


def assert_told(outcome: Any, code: int, *texts: str) -> None:
    """Exit code, and a message with what, where and how to mend it."""
    assert outcome.code == code, outcome.err + outcome.out
    assert outcome.err.startswith("error: ")
    for text in ("where:", "mend:", *texts):
        assert text in outcome.err, outcome.err


# ---- data that cannot be used ---------------------------------------------------------------------------------------

UNUSABLE: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty file": (b"", ("the file holds no rows", "rows.jsonl")),
    "blank lines": (b"\n\n", ("the file holds no rows",)),
    "not JSON": (b"once upon a time\nthere was\n", ("none of the 2 rows can be read", "line 1")),
    "missing columns": (lines({"id": 1, "lang": "en"}, {"id": 2, "lang": "de"}), ("no known layout", "id, lang")),
    "not UTF-8": (lines(*[b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}'] * 2), ("UTF-8", "line 1")),
    "empty completions": (lines(*[{"prompt": "q", "completion": ""}] * 3), ("none of the 3 rows", "rows.jsonl:1")),
    "equal sides": (lines(*[{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3), ("none of the 3 rows", ":1:")),
    "over the share": (lines(*GOOD[:3], "{]", *GOOD[4:6]), ("1 of 6 rows cannot be used", "rows.jsonl:4", "not JSON")),
    "binary": (bytes(range(256)) * 4, ("rows.jsonl",)),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_data_that_cannot_be_used(lab: Lab, tiny_cli, tmp_path: Path, kind: str) -> None:
    content, texts = UNUSABLE[kind]
    (tmp_path / "rows.jsonl").write_bytes(content)
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", **{"data.path": str(tmp_path / "rows.jsonl")}))
    assert_told(outcome, 2, *texts)
    assert not (tmp_path / "runs").exists()


def test_data_that_does_not_serve_the_stage(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(*[{"prompt": f"q {index}"} for index in range(9)]))
    for stage in ("reward", "sft"):
        outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", stage, **{"data.path": str(tmp_path / "rows.jsonl")}))
        assert_told(outcome, 2, "no record serves: the stage needs", "'prompt")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("{lab}/data/preferense.jsonl", ("does not exist", "use data.path=", "preference.jsonl")),
        ("{lab}/data/zzz.csv", ("does not exist", "holds heldout.jsonl, preference.jsonl")),
        ("{lab}/nowhere/rows.jsonl", ("does not exist", "there is no folder")),
    ],
)
def test_a_wrong_path_brings_a_suggestion(
    lab: Lab, tiny_cli, tmp_path: Path, path: str, texts: tuple[str, ...]
) -> None:
    named = path.format(lab=lab.data.parent)
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", **{"data.path": named}))
    assert_told(outcome, 2, "data.path", *texts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_single_bad_rows_go_to_quarantine(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    """With file, line and reason; counted in the plan, the report and the warnings."""
    long = {"prompt": "word " * 200, "chosen": "two", "rejected": "three"}
    empty = {"prompt": "q", "chosen": "", "rejected": "three"}
    equal = {"prompt": "q", "chosen": "two", "rejected": "two"}
    latin = b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}'
    content = lines(*GOOD[:3], "{]", *GOOD[3:20], long, *GOOD[20:], empty, equal, latin)
    (tmp_path / "rows.jsonl").write_bytes(content)
    changes = {"data.path": str(tmp_path / "rows.jsonl"), "data.max_bad_frac": "0.2", "data.heldout_frac": "0.1"}
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", "reward", **changes))
    assert outcome.code == 0, outcome.err
    folder = only_folder(tmp_path / "runs", "reward")
    found = {row["line"]: row["reason"] for row in rows(folder / "quarantine.jsonl")}
    assert set(found) == {4, 22, 43, 44, 45}
    assert all(row["file"] == "rows.jsonl" for row in rows(folder / "quarantine.jsonl"))
    assert "not JSON" in found[4] and "more than model.max_length=128" in found[22] and "UTF-8" in found[45]
    assert read_json(folder / "plan.json")["data"]["quarantined"] == 5
    assert "5 of" in outcome.out and "in quarantine" in outcome.out
    assert any("in quarantine" in warning for warning in read_json(folder / "result.json")["warnings"])
    assert "quarantine" in (folder / "report.md").read_text() and "quarantine" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "rlhf"])
def test_prompts_that_are_all_too_long(lab: Lab, finished: Path, tiny_cli, tmp_path: Path, stage: str) -> None:
    rows_of = [{**row, "prompt": f"{row['prompt']} " + "word " * 200} for row in GOOD]
    (tmp_path / "rows.jsonl").write_bytes(lines(*rows_of))
    changes = {"data.path": str(tmp_path / "rows.jsonl")}
    if stage == "rlhf":
        changes |= {"reward.source": str(only_folder(finished, "reward"))}
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", stage, **changes))
    assert_told(outcome, 2, "no example is left to train on", "rows.jsonl:", "more than model.max_length=128")
    folder = only_folder(tmp_path / "runs", stage)
    assert len(rows(folder / "quarantine.jsonl")) >= 30
    assert "failed in phase 'build'" in (folder / "log.txt").read_text()
    assert not list((tmp_path / "runs").glob(".index/*.json"))  # never taken for a run that could be resumed
    assert not (folder / "artifact").exists() and not list((folder / "checkpoints").iterdir())


# ---- models that cannot be used -------------------------------------------------------------------------------------


def _edit(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edit


def _cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


MODELS: dict[str, tuple[Callable[[Path], Any], int, tuple[str, ...]]] = {
    "wrong EOS": (_edit("tokenizer_config.json", lambda value: value.update(eos_token="<|endoftext|>")), 2,
                  ("ends the assistant's turn with '<|im_end|>'", "set model.eos_token='<|im_end|>'")),
    "no EOS": (_edit("tokenizer_config.json", lambda value: value.pop("eos_token")), 2, ("model.eos_token=",)),
    "torn template": (_template("{% for message in messages %}"), 2, ("the chat template cannot be rendered",)),
    "template that refuses": (_template("{{ raise_exception('no') }}"), 2, ("cannot be rendered: no",)),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 2, ("no safetensors weights",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), 2, ()),
    "torn config": (lambda folder: (folder / "config.json").write_text("{"), 2, ()),
    "unknown architecture": (_edit("config.json", lambda value: value.update(model_type="nope")), 2, ()),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], 2, ("tokenizer",)),
    "torn tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"version"'), 2, ("tokenizer",)),
    "missing folder": (shutil.rmtree, 2, ("there is no folder", "model.source")),
    "cut weights": (_cut_weights, 2, ("the weights cannot be read", "model.safetensors")),
    "garbage weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 64), 2,
                        ("the weights cannot be read", "model.safetensors")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_models_that_cannot_be_used(lab: Lab, tiny_cli, tmp_path: Path, kind: str) -> None:
    spoil, code, texts = MODELS[kind]
    bad = Lab(tmp_path / "model", lab.data)
    shutil.copytree(lab.model, bad.model)
    spoil(bad.model)
    outcome = tiny_cli(arguments_for(bad, tmp_path / "runs"))
    assert_told(outcome, code, *texts)
    assert str(bad.model) in outcome.err
    if kind in ("cut weights", "garbage weights"):  # seen when the model is made
        folder = only_folder(tmp_path / "runs", "sft")
        assert "failed in phase 'build'" in (folder / "log.txt").read_text()
        assert not list((tmp_path / "runs").glob(".index/*.json")) and not (folder / "artifact").exists()
    else:
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "code", "text"),
    [
        ("model.chat_template", "/nowhere.jinja", 2, "there is no file"),
        ("model.eos_token", "<|nope|>", 2, "does not know the token"),
        ("model.pad_token", "<|nope|>", 2, "does not know the token"),
    ],
)
def test_model_settings_that_name_nothing(
    lab: Lab, tiny_cli, tmp_path: Path, key: str, value: str, code: int, text: str
) -> None:
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", **{key: f"'{value}'"}))
    assert outcome.code == code and outcome.err.startswith("error: ") and text in outcome.err and key in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_template_without_system_gets_it_in_the_first_user_message(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    bad = Lab(tmp_path / "model", lab.data)
    shutil.copytree(lab.model, bad.model)
    old = (bad.model / "chat_template.jinja").read_text()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (bad.model / "chat_template.jinja").write_text(refusal + old)
    changes = {"data.system": "Be brief.", "dry_run": "true"}
    outcome = tiny_cli(arguments_for(bad, tmp_path / "runs", **changes))
    assert outcome.code == 0 and "error" not in outcome.err
    refusal = (
        "{% if messages|length == 1 and 'after' in messages[0].content %}{{ raise_exception('not so') }}{% endif %}"
    )
    (bad.model / "chat_template.jinja").write_text(refusal + old)
    outcome = tiny_cli(arguments_for(bad, tmp_path / "runs"))
    assert_told(outcome, 2, "no example is left", "not so", "the roles user")
    (quarantine,) = (tmp_path / "runs").rglob("quarantine.jsonl")
    assert all("not so" in row["reason"] for row in map(json.loads, quarantine.read_text().splitlines()))


# ---- rewards --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward model `gappy` is installed."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PREFTUNE_PLUGINS", "bad_reward")


@pytest.mark.slow
def test_a_score_that_is_nan_is_an_error_and_counted(lab: Lab, tiny_cli, tmp_path: Path, bad_reward: None) -> None:
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", "rlhf", reward="gappy"))
    assert outcome.code == 0, outcome.err
    folder = only_folder(tmp_path / "runs", "rlhf")
    metrics = [row for row in rows(folder / "metrics.jsonl") if "rlhf/loss" in row]
    assert all(row["rlhf/reward_errors"] == 2 and row["rlhf/reward"] is not None for row in metrics)
    assert read_json(folder / "result.json")["reward_errors"] >= 4


@pytest.mark.slow
def test_nothing_but_nan_ends_the_run(lab: Lab, tiny_cli, tmp_path: Path, bad_reward: None) -> None:
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", "rlhf", reward="gappy", **{"reward.every": "1"}))
    assert_told(outcome, 1, "every reward of this iteration is an error", "not finite: nan", "reward=gappy")
    assert not (only_folder(tmp_path / "runs", "rlhf") / "artifact").exists()


@pytest.mark.slow
def test_a_reward_folder_that_is_not_there(lab: Lab, tiny_cli, tmp_path: Path) -> None:
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", "rlhf", **{"reward.source": "/nowhere"}))
    assert_told(outcome, 2, "'/nowhere' holds no reward model", "reward.source")
    assert not (tmp_path / "runs").exists()


# ---- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["file", "file/deeper"])
def test_a_runs_dir_that_cannot_be_written(lab: Lab, tiny_cli, tmp_path: Path, runs: str) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = tiny_cli(arguments_for(lab, tmp_path / runs))
    assert_told(outcome, 2, "'runs_dir' must be a folder", "is a file", str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_gpu_that_is_not_there(lab: Lab, tiny_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = tiny_cli(arguments_for(lab, tmp_path / "runs", **{"runtime.device": "cuda"}))
    assert_told(outcome, 2, "torch sees no GPU", "runtime.device=auto")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_itself_ends_without_a_traceback(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    for path in (str(tmp_path / "rows.jsonl"), "nowhere.jsonl"):
        done = subprocess.run(
            [sys.executable, "-m", "core", *arguments_for(lab, tmp_path / "runs", **{"data.path": path})],
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert run_folders(tmp_path / "runs", "") == []
