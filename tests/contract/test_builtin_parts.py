"""Built-in parts of every kind but stages and commands, through the suites that a stranger's plugin inherits."""

from __future__ import annotations

from typing import ClassVar

import pytest
from safetensors.numpy import load_file

from core.api import Message, Record, ScoreRequest
from core.testing.contracts import (
    DataSourceContract,
    EngineContract,
    JudgeContract,
    MetricContract,
    OptimizerContract,
    PeftMethodContract,
    RewardContract,
    TextSetContract,
    TrackerContract,
    TransformContract,
)
from core.testing.run import read_json


class TestLength(RewardContract):
    reward = "length"
    words = ("reward.target_tokens=4",)


class TestTransformers(EngineContract):
    engine = "transformers"


class TestDemo(DataSourceContract):
    source = "demo"
    stages = ("sft", "reward")


class TestAdafactor(OptimizerContract):
    optimizer = "adafactor"
    lr = 0.1


@pytest.mark.slow
class TestAdamW8bit(OptimizerContract):
    optimizer = "adamw8bit"
    words = ("optimizer.min_values=0",)


class TestDistinct(MetricContract):
    metric = "distinct"
    settings = "n: 1"


@pytest.mark.slow
class TestPerplexity(MetricContract):
    metric = "perplexity"


class TestLoraFA(PeftMethodContract):
    method = "lora_fa"

    def test_the_factors_a_stay_as_they_were_drawn(self, straight, stage_runner):
        """However long it trains; the factors B move, and half of LoRA's parameters are trained."""
        short = stage_runner(*self.chosen(), "stage.max_steps=1", "stage.lr=1e-2").assert_ok()
        long, short = (load_file(one.artifact / "adapter_model.safetensors") for one in (straight, short))
        same = {name.rpartition(".lora_")[2][0]: set() for name in long}
        for name, value in long.items():
            same[name.rpartition(".lora_")[2][0]].add(bool((value == short[name]).all()))
        assert same == {"A": {True}, "B": {False}}
        trained = read_json(straight.folder / "artifact.json")["trained"]
        assert trained["trainable"] == sum(value.size for name, value in long.items() if ".lora_B." in name)
        assert trained["peft"] == "lora_fa (lora)"


class TestTensorboard(TrackerContract):
    tracker = "tensorboard"
    writes = "tensorboard/events.*"


class TestLengthFilter(TransformContract):
    transform = "length"
    settings: ClassVar = {"max_words": 9}
    records = tuple(Record(prompt=(Message("user", text),), completion="yes") for text in ("is it", "is it " * 9))


class TestStudy(TextSetContract):
    text_set = "study"
    kind = "directives"


class TestExact(JudgeContract):
    reward = "exact"
    right = (ScoreRequest("1 + 1?", "two", answer="two"),)
    wrong = (ScoreRequest("1 + 1?", "three", answer="two"),)
