"""The public test kit: tiny models and data, made on the spot."""

from __future__ import annotations

from core.testing.tiny import tiny_model, tiny_pairs

__all__ = ["tiny_model", "tiny_pairs"]
