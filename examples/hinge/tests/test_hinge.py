"""The loss against a plain loop over sequences, the presets, and the contract of every stage."""

import pytest
import torch

from core.testing import command
from core.testing.bench import Bench
from core.testing.contracts import StageContract
from core.torch_api import pack_texts, step_items


class TestHinge(StageContract):
    stage = "hinge"
    metrics = ("accuracy",)
    lr = 1e-3


def test_the_loss_equals_a_plain_loop(preftune_lab, tmp_path):
    words = ["stage=hinge", "stage.batch_size=8", "stage.margin=3", "stage.chosen_weight=0.5"]
    bench = Bench([*preftune_lab.words(tmp_path / "runs"), "pipeline.stages=[hinge]", *words], tmp_path / "run")

    def total_logprob(prompt, completion):
        with torch.no_grad():
            logprobs = bench.models.policy(pack_texts([[*prompt, *completion]]))[0]
        return logprobs[len(prompt) - 1 :].sum().item()

    losses = []
    for pair in step_items(bench.data.train, 0, 8, bench.run.seed_for("order")):
        chosen, rejected = (total_logprob(pair.prompt, side) for side in (pair.chosen, pair.rejected))
        losses.append(max(0.0, 3 - (chosen - rejected)) - 0.5 * chosen)
    assert bench.losses()[0][0] == pytest.approx(sum(losses) / 8, rel=1e-5)
    bench.close()


def test_its_presets_set_what_they_say():
    shown = command("stage=hinge_strict", "+hinge_mix=off", "--cfg", "job")
    assert "margin: 4.0" in shown.out and "chosen_weight: 0.0" in shown.out, shown.err
