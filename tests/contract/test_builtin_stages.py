"""The built-in stages through the suites that a stranger's plugin inherits."""

from __future__ import annotations

from core.testing.contracts import StageContract


class TestSft(StageContract):
    stage = "sft"
    metrics = ("target_tokens",)


class TestReward(StageContract):
    stage = "reward"
    lr = 1e-3
    metrics = ("accuracy",)


class TestDpo(StageContract):
    stage = "rlhf"
    algorithm = "dpo"
    metrics = ("accuracy", "margin")
    lr = 1e-3


class TestGrpo(StageContract):
    stage = "rlhf"
    algorithm = "grpo"
    loss = ""
    metrics = ("reward", "kl", "entropy")
    lr = 1e-3
    words = (
        "reward=length",
        "reward.target_tokens=4",
        "stage.batch_size=4",
        "stage.group_size=2",
        "stage.max_new_tokens=5",
    )
