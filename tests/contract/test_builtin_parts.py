"""Built-in reward models, engines and data sources through the suites that a stranger's plugin inherits."""

from __future__ import annotations

from safetensors.numpy import load_file

from core.testing.contracts import (
    DataSourceContract,
    EngineContract,
    MetricContract,
    OptimizerContract,
    PeftMethodContract,
    RewardContract,
)
from core.testing.run import read_json


class TestLength(RewardContract):
    reward = "length"
    words = ("reward.target_tokens=4",)


class TestExact(RewardContract):
    reward = "exact"


class TestTransformers(EngineContract):
    engine = "transformers"


class TestDemo(DataSourceContract):
    source = "demo"
    stages = ("sft", "reward")


class TestAdafactor(OptimizerContract):
    optimizer = "adafactor"
    lr = 0.1


class TestAdamW8bit(OptimizerContract):
    optimizer = "adamw8bit"
    words = ("optimizer.min_values=0",)


class TestDistinct(MetricContract):
    metric = "distinct"
    settings = "n: 1"


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
