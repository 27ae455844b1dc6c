"""What the number formats mean for rollouts. Torch-free."""

from __future__ import annotations

from core.schema import Dtype

SYNC_TOLERANCE = {"fp32": 0.01, "bf16": 1.0}
"""Largest accepted difference in nats of one token's log-probability between engine and trainer, by number format.
About twice the largest that was measured between in-step weights over thousands of tokens, except that fp32 gets
room: it was 5e-5 there. bf16 differs because logits near 20 are rounded to multiples of 0.125."""


def resolve_dtype(dtype: Dtype | str) -> str:
    """`fp32` or `bf16`; auto computes in bf16."""
    name = dtype.value if isinstance(dtype, Dtype) else dtype
    return "bf16" if name == "auto" else name


def sync_tolerance(configured: float, dtype: str) -> float:
    """The configured tolerance in nats, or the measured bound for `dtype` (fp32 or bf16) where it is 0."""
    return configured or SYNC_TOLERANCE[dtype]
