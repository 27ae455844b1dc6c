"""The contract of every rollout engine."""

from core.testing.contracts import EngineContract


class TestPlain(EngineContract):
    engine = "plain"
