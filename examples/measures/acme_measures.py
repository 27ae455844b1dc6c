"""A metric, ROUGE-L (Lin 2004): how much of the wanted answer stands in the completion, in its order."""

from dataclasses import dataclass

from core.api import MetricConfig, MetricSpec, hookimpl, number, words_of

PREFTUNE_API = 2


@dataclass
class RougeConfig(MetricConfig):
    """Settings of `rouge_l`."""

    recall_weight: float = number(1.0, above=0)
    """Weight of recall beside precision; 1 makes it the harmonic mean."""


def common(one, other):
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row[:]
        for place, match in enumerate(other, start=1):
            row[place] = before[place - 1] + 1 if word == match else max(before[place], row[place - 1])
    return row[-1]


def rouge_l(completion, answer, weight):
    said, wanted = words_of(completion), words_of(answer)
    shared = common(said, wanted)
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return (1 + weight) * precision * recall / (recall + weight * precision)


def build(config, run):
    def measure(requests):
        known = [one for one in requests if one.answer]
        found = [rouge_l(one.completion, one.answer, config.recall_weight) for one in known]
        return sum(found) / max(len(found), 1)

    return measure


@hookimpl
def register_metrics():
    return [MetricSpec("rouge_l", RougeConfig, "acme_measures:build", "completions", "ROUGE-L against the answer")]
