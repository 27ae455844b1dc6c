"""Stages of a tiny model on the bench, with a known reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.api import Rollout
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


class Planted:
    """An engine that writes what a test says: the text after the prompt's question, and counts its prompts."""

    name = "planted"

    def __init__(self, codec, write) -> None:
        self.codec, self.write, self.prompts = codec, write, 0

    def generate(self, prompts, sampling):
        rollouts = []
        for index, prompt in enumerate(prompts):
            self.prompts += 1
            asked = self.codec.tokenizer.decode(prompt)
            for _ in range(sampling.n):
                text, finished = self.write(asked)
                ids = self.codec.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids = [*ids, self.codec.eos] if finished else ids
                rollouts.append(Rollout(list(prompt), ids, [0.0] * len(ids), finished, 0, index))
        return rollouts

    def close(self) -> None:
        pass


@pytest.fixture
def planted() -> type[Planted]:
    """The engine that writes what a test says: `planted(codec, write)`."""
    return Planted
