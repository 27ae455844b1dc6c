"""The loss against numbers worked out by hand, its gradient, real rollouts, and the contract of every stage."""

from math import exp
from types import SimpleNamespace

import pytest
import torch
from acme_gspo import GspoConfig
from acme_gspo_stage import Gspo

from core.testing import command
from core.testing.bench import Bench
from core.testing.contracts import StageContract
from core.torch_api import PromptGroup, pack
from plugins.online.group import GroupWork
from plugins.online.rollouts import RolloutRow, Size

WORDS = ("reward=length", "reward.target_tokens=4", "stage.group_size=2", "stage.max_new_tokens=5")


class TestGspo(StageContract):
    stage = "rlhf"
    algorithm = "gspo"
    loss = ""
    metrics = ("reward", "kl", "clip_frac", "approx_kl")
    lr = 1e-3
    words = (*WORDS, "stage.batch_size=4", "stage.minibatches=2")


OLD = [-1.0, -2.0, -1.5, -0.5, -1.0, -3.0]
NEW = [-0.8, -1.8, -1.4, -0.5, -1.6, -2.7]
"""Log-probabilities of three completions of 3, 1 and 2 tokens."""
ADVANTAGES = [1.0, -1.0, -2.0]


def loss_of(**settings):
    """The loss of one row with the numbers above, and the gradient of each log-probability."""
    packed = pack([PromptGroup([1, 2], [[3, 4, 5], [6], [7, 8]])])
    given = torch.tensor(OLD)
    row = RolloutRow(
        packed, torch.zeros(3), reference_logprob_M=given, engine_logprob_M=given, old_logprob_M=given,
        weight_M=torch.ones(6), extra={"advantage_C": torch.tensor(ADVANTAGES)},
    )  # fmt: skip
    logprob_M = torch.tensor(NEW, requires_grad=True)
    models = SimpleNamespace(call=lambda role, packed, temperature, want_entropy: (logprob_M, None))
    run = SimpleNamespace(cfg=SimpleNamespace(stage=GspoConfig(**settings)))
    found = Gspo(run).compute_loss(models, GroupWork(row, Size.of([row])))
    found.loss.backward()
    return found, logprob_M.grad.tolist()


def test_the_loss_is_that_of_a_calculation_by_hand():
    """Log-ratios 0.2, 0.2, 0.1 | 0.0 | -0.6, 0.3 have the means 1/6, 0 and -0.15. With 1 - 0.1 … 1 + 0.15 the first is
    clipped to 1.15, for its advantage is positive, and the last to 0.9, for its own is negative."""
    found, gradient = loss_of(clip_range=0.1, clip_range_high=0.15)
    assert found.loss.item() == pytest.approx((-1.0 * 1.15 + 1.0 * 1.0 + 2.0 * 0.9) / 3)
    assert found.metrics["clip_frac"] == pytest.approx(2 / 3)
    assert found.metrics["ratio_gap"] == pytest.approx((exp(1 / 6) - 1 + 0.0 + 1 - exp(-0.15)) / 3)
    assert gradient == pytest.approx([0, 0, 0, 1 / 3, 0, 0])


def test_every_token_of_a_completion_has_the_same_share_of_the_gradient():
    """-A s / (G |y|), the paper's eq. 10."""
    found, gradient = loss_of(clip_range=0.5, clip_range_high=0.5)
    first, last = exp(1 / 6), exp(-0.15)
    assert found.loss.item() == pytest.approx((-first + 1.0 + 2.0 * last) / 3)
    assert gradient == pytest.approx([-first / 9] * 3 + [1 / 3] + [2 * last / 6] * 2)


def test_the_kl_is_a_mean_over_each_completions_tokens():
    plain, _ = loss_of()
    with_kl, _ = loss_of(kl_coef=0.5)
    k3 = [exp(old - new) - 1 + new - old for old, new in zip(OLD, NEW, strict=True)]
    expected = 0.5 * (sum(k3[:3]) / 3 + k3[3] + sum(k3[4:]) / 2) / 3
    assert with_kl.loss.item() - plain.loss.item() == pytest.approx(expected, rel=1e-5)


def test_before_the_first_update_every_ratio_is_one(preftune_lab, tmp_path):
    words = ["stage=rlhf", "algorithm=gspo", "pipeline.stages=[rlhf]", "stage.batch_size=4", *WORDS]
    bench = Bench([*preftune_lab.words(tmp_path / "runs"), *words], tmp_path / "run")
    batch = bench.collect()
    assert len(batch.updates) == 4
    for update in batch.updates:
        found = [bench.loss(work) for work in update]
        assert sum(one.loss.item() for one in found) == pytest.approx(
            -sum(work.row.extra["advantage_C"].sum().item() for work in update) / update[0].size.completions, abs=1e-6
        )
        assert sum(one.metrics["ratio_gap"] for one in found) == sum(one.metrics["clip_frac"] for one in found) == 0
    bench.close()


def test_a_setting_out_of_range_is_refused():
    refused = command("stage=rlhf", "algorithm=gspo", "stage.clip_range_high=0", "dry_run=true")
    assert refused.code == 2 and "stage.clip_range_high" in refused.err
