"""ROUGE-L by hand, and the contract of every metric."""

import pytest
from acme_measures import rouge_l

from core.testing.contracts import MetricContract


class TestRouge(MetricContract):
    metric = "rouge_l"
    settings = "recall_weight: 2"


@pytest.mark.parametrize(
    ("completion", "answer", "weight", "score"),
    [("the cat sat", "The cat sat.", 1, 1.0), ("a cat", "the cat sat", 1, 0.4), ("dog", "cat", 1, 0.0),
     ("a cat", "the cat sat", 1e9, 1 / 3)],
)  # fmt: skip
def test_scores(completion, answer, weight, score):
    assert rouge_l(completion, answer, weight) == pytest.approx(score)
