"""What several stages share. This module is torch-free; the estimators are public, tested against published numbers and
against plain loops."""

from __future__ import annotations

from enum import Enum


class KlEstimator(str, Enum):
    """Estimator of KL(policy || reference) from one sample, with d = logprob - reference_logprob."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"
