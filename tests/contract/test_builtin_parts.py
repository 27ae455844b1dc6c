"""Built-in reward models, engines and data sources through the suites that a stranger's plugin inherits."""

from __future__ import annotations

from core.testing.contracts import DataSourceContract, EngineContract, MetricContract, OptimizerContract, RewardContract


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
