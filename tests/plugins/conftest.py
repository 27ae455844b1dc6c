"""Stages of a tiny model on the bench, with a known reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.platform.switches import MODULES_VARIABLE
from core.testing.bench import Bench
from core.testing.tiny import tiny_model as write_tiny_model
from core.testing.tiny import tiny_pairs

FAKES = Path(__file__).parent / "fakes"


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model with tokenizer and chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_chat"))


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of preference rows with answers."""
    return tiny_pairs(tmp_path_factory.mktemp("tiny_rows") / "pairs.jsonl")


@pytest.fixture
def make_stage(
    tiny_chat: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Bench]]:
    """Builds a stage from command-line words; the toy reward is known, held-out generation is off."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv(MODULES_VARIABLE, "toy_rewards")
    made: list[Bench] = []

    def make(*words: str) -> Bench:
        name = next(word for word in words if word.startswith("stage=")).removeprefix("stage=")
        arguments = [
            f"model.source={tiny_chat}", f"data.path={tiny_rows}", "rollout=transformers", "tracker=none",
            "runtime.dtype=fp32", f"runs_dir={tmp_path / 'runs'}", f"pipeline.stages=[{name}]", "eval.max_items=0",
            "stage.save_every_steps=0",
        ]  # fmt: skip
        made.append(Bench([*arguments, *words], tmp_path / f"run-{len(made)}"))
        return made[-1]

    yield make
    for stage in made:
        stage.close()
