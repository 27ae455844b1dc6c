"""Built-in reward models, engines and data sources through the suites that a stranger's plugin inherits."""

from __future__ import annotations

from core.testing.contracts import DataSourceContract, EngineContract, RewardContract


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
