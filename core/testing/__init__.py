"""The public test kit: tiny models and data made on the spot, runs in this process, contracts to inherit.

pytest finds its fixtures by itself (`core.testing.plugin`); the contracts are in `core.testing.contracts`.
"""

from __future__ import annotations

from core.testing.run import Lab, Outcome, StageRunner, command
from core.testing.tiny import tiny_model, tiny_pairs

__all__ = ["Lab", "Outcome", "StageRunner", "command", "tiny_model", "tiny_pairs"]
