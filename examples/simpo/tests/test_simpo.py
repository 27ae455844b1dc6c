"""The loss against a plain loop over sequences, and the contract of every stage."""

import math

import pytest
import torch

from core.testing import command
from core.testing.bench import Bench
from core.testing.contracts import StageContract
from core.torch_api import pack_texts, step_items


class TestSimPO(StageContract):
    stage = "rlhf"
    algorithm = "simpo"
    metrics = ("accuracy",)
    lr = 1e-3


def test_the_loss_equals_a_plain_loop(preftune_lab, tmp_path):
    words = ["stage=rlhf", "algorithm=simpo", "stage.batch_size=8", "stage.beta=2.5", "stage.gamma_ratio=0.4"]
    bench = Bench([*preftune_lab.words(tmp_path / "runs"), "pipeline.stages=[rlhf]", *words], tmp_path / "run")

    def mean_logprob(prompt, completion):
        with torch.no_grad():
            logprobs = bench.models.policy(pack_texts([[*prompt, *completion]]))[0]
        return logprobs[len(prompt) - 1 :].mean().item()

    losses = []
    for pair in step_items(bench.data.train, 0, 8, bench.run.seed_for("order")):
        chosen, rejected = (mean_logprob(pair.prompt, side) for side in (pair.chosen, pair.rejected))
        losses.append(math.log1p(math.exp(-(2.5 * (chosen - rejected) - 2.5 * 0.4))))
    assert bench.losses()[0][0] == pytest.approx(sum(losses) / 8, rel=1e-5)
    bench.close()


def test_the_plan_puts_sft_before_it_and_keeps_the_built_in_algorithms():
    assert "stage.gamma_ratio=0.5" in command("help", "stage=rlhf", "algorithm=simpo").out
    assert "stage.beta=0.1" in command("help", "stage=rlhf", "algorithm=dpo").out
    typo = command("stage=rlhf", "algorithm=simpoo")
    assert typo.code == 2 and "simpo" in typo.err
