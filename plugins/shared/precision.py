"""What the number formats mean for rollouts. Torch-free."""

from __future__ import annotations

from core.schema import Dtype

SYNC_TOLERANCE = {"fp32": 0.01, "bf16": 1.0}
"""Largest accepted difference in nats of one token's log-probability between engine and trainer, by number format.
Measured with equal weights over 4000 tokens: fp32 1e-4, bf16 0.4 (mean 0.05), for bf16 rounds logits near 20 to
multiples of 0.125. On a model that large updates have damaged, bf16 goes beyond 1 at the first few positions: compare
completion tokens, or the mean."""


def resolve_dtype(dtype: Dtype | str) -> str:
    """`fp32` or `bf16`; auto computes in bf16."""
    name = dtype.value if isinstance(dtype, Dtype) else dtype
    return "bf16" if name == "auto" else name


def sync_tolerance(configured: float, dtype: str) -> float:
    """The configured tolerance in nats, or the measured bound for `dtype` (fp32 or bf16) where it is 0."""
    return configured or SYNC_TOLERANCE[dtype]
