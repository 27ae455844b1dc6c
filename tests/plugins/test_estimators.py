"""Estimators, advantages and losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.shared.estimators import (
    adaptive_coefficient,
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    group_advantages,
    kl_estimate,
    leave_one_out_advantages,
    masked_mean,
    pairwise_loss,
    whiten,
)

from plugins.reward.stage import bradley_terry_loss
from plugins.rlhf.ppo import to_rectangle, token_rewards
from plugins.shared import KlEstimator

LN2 = math.log(2)
FEW = settings(max_examples=40, deadline=None)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numbers(low: float = -3.0, high: float = 3.0) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


# ---- KL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_kl_of_one_sample(estimator, value):
    assert kl_estimate(tensor(-1.0), tensor(-1.5), KlEstimator(estimator)).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("estimator", list(KlEstimator))
def test_kl_of_equal_models_is_exactly_zero(estimator):
    logprob = torch.randn(50)
    assert torch.equal(kl_estimate(logprob, logprob.clone(), estimator), torch.zeros(50))


@FEW
@given(numbers(-5, 0), numbers(-5, 0))
def test_k2_and_k3_are_never_negative(ours, theirs):
    # Float32 rounding near d = 0 leaves expm1(-d) + d below 0 by no more than that.
    for estimator in (KlEstimator.k2, KlEstimator.k3):
        assert kl_estimate(torch.tensor(ours), torch.tensor(theirs), estimator).item() >= -1e-6


def test_k1_and_k3_have_the_mean_of_the_exact_kl_and_k2_has_not():
    p, q = torch.softmax(tensor(0.3, -1.0, 0.8, 0.0), 0), torch.softmax(tensor(-0.5, 0.9, 0.1, 0.4), 0)
    exact = (p * (p / q).log()).sum()
    for estimator in (KlEstimator.k1, KlEstimator.k3):
        assert torch.isclose((p * kl_estimate(p.log(), q.log(), estimator)).sum(), exact)
    assert not torch.isclose((p * kl_estimate(p.log(), q.log(), KlEstimator.k2)).sum(), exact, rtol=1e-2)


# ---- advantages --------------------------------------------------------------------------------------------------

REWARDS, VALUES = (-0.01, 0.02, 1.0), (0.5, 0.4, 0.6)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t as the double sum of its definition: sum over l of (gamma lam)^l delta_{t+l}."""
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(rewards))
    ]
    return [
        sum((gamma * lam) ** step * deltas[t + step] for step in range(len(deltas) - t)) for t in range(len(deltas))
    ]


def test_gae_returns_and_whitening():
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = generalized_advantages(tensor(*REWARDS)[None], tensor(*VALUES)[None], mask, 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([0.46, 0.60, 0.40], abs=1e-9)
    assert returns[0].tolist() == pytest.approx([0.96, 1.0, 1.0], abs=1e-9)
    assert whiten(advantages, mask)[0].tolist() == pytest.approx([-0.31822, 1.35245, -1.03422], abs=1e-5)


def test_slow_gae_knows_the_same_numbers():
    assert slow_gae(list(REWARDS), list(VALUES), 1.0, 0.95) == pytest.approx([0.46, 0.60, 0.40])


@FEW
@given(
    st.lists(st.lists(st.tuples(numbers(), numbers()), min_size=1, max_size=7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    numbers(-100, 100),
)
def test_gae_of_padded_rows_is_the_slow_gae_of_each(rows, gamma, lam, padding):
    width = max(len(row) for row in rows)
    rewards, values = (torch.full((len(rows), width), padding, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        rewards[index, : len(row)] = tensor(*[reward for reward, _ in row])
        values[index, : len(row)] = tensor(*[value for _, value in row])
        mask[index, : len(row)] = True
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    assert torch.equal(advantages[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    assert torch.equal(returns[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    for index, row in enumerate(rows):
        slow = slow_gae([reward for reward, _ in row], [value for _, value in row], gamma, lam)
        assert advantages[index, : len(row)].tolist() == pytest.approx(slow, abs=1e-9)
        expected = [a + value for a, (_, value) in zip(slow, row, strict=True)]
        assert returns[index, : len(row)].tolist() == pytest.approx(expected, abs=1e-9)


def test_gae_at_its_two_ends():
    rewards, values, mask = tensor(*REWARDS)[None], tensor(*VALUES)[None], torch.ones(1, 3, dtype=torch.bool)
    _, monte_carlo = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    assert monte_carlo[0].tolist() == pytest.approx([1.01, 1.02, 1.0])
    one_step, _ = generalized_advantages(rewards, values, mask, 1.0, 0.0)
    assert one_step[0].tolist() == pytest.approx([-0.11, 0.22, 0.4])


def test_whitening_sees_real_tokens_only():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    values = tensor(1.0, 2.0, 6.0, 4.0, 1e6, -1e6).reshape(2, 3)
    white = whiten(values, mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white[mask].std(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(white[~mask], torch.zeros(2, dtype=torch.float64))
    kept = whiten(values, mask, keep_mean=True)
    assert kept[mask].mean().item() == pytest.approx(values[mask].mean().item())
    assert kept[mask].std(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(kept[~mask], torch.zeros(2, dtype=torch.float64))


def test_whitening_equal_values_gives_zero():
    assert torch.equal(whiten(torch.full((2, 3), 0.7), torch.ones(2, 3, dtype=torch.bool)), torch.zeros(2, 3))


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(4), torch.zeros(4, dtype=torch.bool)).item() == 0.0


def test_the_score_is_given_at_the_last_token_of_each_completion():
    completion = torch.tensor([0, 0, 1, 2, 2, 2])
    kl = tensor(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    rewards = token_rewards(tensor(1.0, 2.0, 3.0), kl, completion, 0.5)
    assert rewards.tolist() == pytest.approx([-0.05, 0.9, 1.85, -0.2, -0.25, 2.7])


def test_to_rectangle_keeps_order_and_pads_with_zero():
    flat = torch.arange(1.0, 7.0)
    rectangle = to_rectangle(flat, torch.tensor([2, 1, 3]))
    assert rectangle.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


# ---- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [(1.3, 1, -1.2, True), (0.7, 1, -0.7, False), (1.3, -1, 1.3, False), (0.7, -1, 0.8, True)],
)
def test_clip_cases_and_where_the_gradient_stops(ratio, advantage, loss, is_clipped):
    logprob = tensor(math.log(ratio)).requires_grad_()
    out, seen, clipped = clipped_policy_loss(logprob, tensor(0.0), tensor(advantage), 0.2, 0.2)
    assert out.item() == pytest.approx(loss, abs=1e-9)
    assert seen.item() == pytest.approx(ratio)
    assert clipped.item() is is_clipped
    out.sum().backward()
    assert logprob.grad.item() == pytest.approx(0.0 if is_clipped else -advantage * ratio)


def test_upper_and_lower_clip_are_apart():
    out, _, clipped = clipped_policy_loss(
        tensor(*[math.log(r) for r in (1.25, 1.35)]), tensor(0, 0), tensor(1, 1), 0.2, 0.28
    )
    assert out.tolist() == pytest.approx([-1.25, -1.28])
    assert clipped.tolist() == [False, True]


def test_first_update_has_the_gradient_of_reinforce():
    logprob = tensor(-1.0, -2.0, -0.5).requires_grad_()
    advantage = tensor(0.4, -1.0, 2.0)
    out, ratio, clipped = clipped_policy_loss(logprob, logprob.detach().clone(), advantage, 0.2, 0.2)
    out.sum().backward()
    assert torch.equal(ratio, torch.ones(3, dtype=torch.float64))
    assert not clipped.any()
    assert torch.equal(logprob.grad, -advantage)


def test_value_loss_takes_the_worse_of_plain_and_clipped():
    # v moved from 0 to 1 towards the return 1: clipped at 0.2 the error is 0.8, and there is no gradient left.
    value = tensor(1.0).requires_grad_()
    loss = clipped_value_loss(value, tensor(0.0), tensor(1.0), 0.2)
    assert loss.item() == pytest.approx(0.5 * 0.8**2)
    loss.sum().backward()
    assert value.grad.item() == 0.0
    # v moved away from the return: the plain error counts.
    assert clipped_value_loss(tensor(-1.0), tensor(0.0), tensor(1.0), 0.2).item() == pytest.approx(2.0)
    assert clipped_value_loss(tensor(1.0), tensor(0.0), tensor(1.0), 0.0).item() == 0.0
    assert clipped_value_loss(tensor(0.1), tensor(0.0), tensor(1.0), 0.2).item() == pytest.approx(0.5 * 0.81)


def test_adaptive_coefficient():
    assert adaptive_coefficient(1.0, 12.0, 6.0, 10_000, 64) == pytest.approx(1.00128, abs=1e-12)
    assert adaptive_coefficient(1.0, 0.0, 6.0, 10_000, 64) == pytest.approx(1 - 0.00128, abs=1e-12)
    assert adaptive_coefficient(0.2, 6.0, 6.0, 10_000, 64) == 0.2
    assert adaptive_coefficient(1.0, 6.6, 6.0, 10_000, 64) == pytest.approx(1 + 0.1 * 64 / 10_000)


# ---- groups ------------------------------------------------------------------------------------------------------

GROUP = (1, 0, 0, 1, 1, 0, 0, 0)


def test_group_advantages():
    rewards = torch.tensor([GROUP], dtype=torch.float64)
    scaled = group_advantages(rewards, scale=True)[0]
    assert scaled.tolist() == pytest.approx([1.20738 if reward else -0.72443 for reward in GROUP], abs=1e-5)
    plain = group_advantages(rewards, scale=False)[0]
    assert plain.tolist() == pytest.approx([0.625 if reward else -0.375 for reward in GROUP])


def test_leave_one_out_advantages():
    rewards = torch.tensor([GROUP], dtype=torch.float64)
    expected = [0.714286 if reward else -0.428571 for reward in GROUP]
    assert leave_one_out_advantages(rewards)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25])
def test_equal_rewards_teach_nothing(value):
    rewards = torch.full((3, 4), value)
    for advantages in (
        group_advantages(rewards, scale=True),
        group_advantages(rewards, scale=False),
        leave_one_out_advantages(rewards),
    ):
        assert torch.equal(advantages, torch.zeros(3, 4))


@FEW
@given(st.lists(st.lists(numbers(), min_size=4, max_size=4), min_size=1, max_size=3), numbers())
def test_group_baselines_sum_to_zero_and_ignore_a_constant(rows, shift):
    rewards = torch.tensor(rows, dtype=torch.float64)
    for of in (lambda r: group_advantages(r, True), lambda r: group_advantages(r, False), leave_one_out_advantages):
        assert torch.allclose(of(rewards).sum(1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-7)
        assert torch.allclose(of(rewards), of(rewards + shift), atol=1e-7)
    # Leave-one-out is the centred reward times G / (G - 1).
    assert torch.allclose(leave_one_out_advantages(rewards), group_advantages(rewards, False) * 4 / 3, atol=1e-9)


def test_groups_do_not_mix():
    rewards = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    assert torch.equal(leave_one_out_advantages(rewards), torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    assert torch.equal(group_advantages(rewards, False), torch.tensor([[0.5, -0.5], [0.0, 0.0]]))


# ---- pairs -------------------------------------------------------------------------------------------------------

POLICY_GAP, REFERENCE_GAP = tensor(-10.0 + 14.0), tensor(-11.0 + 13.0)


@pytest.mark.parametrize(
    ("kind", "smoothing", "loss"),
    [("dpo", 0.0, 0.598139), ("cdpo", 0.1, 0.618139), ("robust", 0.1, 0.573139), ("ipo", 0.0, 9.0)],
)
def test_pairwise_losses(kind, smoothing, loss):
    assert pairwise_loss(kind, POLICY_GAP, REFERENCE_GAP, 0.1, smoothing).item() == pytest.approx(loss, abs=1e-6)


def test_ipo_of_averages():
    policy, reference = tensor(-10 / 5 + 14 / 7), tensor(-11 / 5 + 13 / 7)
    assert pairwise_loss("ipo", policy, reference, 0.1).item() == pytest.approx(21.688980, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "smoothing", "loss"), [("dpo", 0.0, LN2), ("cdpo", 0.1, LN2), ("robust", 0.1, LN2), ("ipo", 0.0, 25.0)]
)
def test_pairwise_losses_where_policy_is_reference(kind, smoothing, loss):
    gap = tensor(3.7)
    assert pairwise_loss(kind, gap, gap, 0.1, smoothing).item() == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize("kind", ["cdpo", "robust"])
def test_without_smoothing_both_are_dpo(kind):
    gap = torch.linspace(-60, 60, 41, dtype=torch.float64)
    assert torch.allclose(
        pairwise_loss(kind, gap, REFERENCE_GAP, 0.3, 0.0), pairwise_loss("dpo", gap, REFERENCE_GAP, 0.3)
    )


def test_robust_loss_is_unbiased_under_flipped_labels():
    h, e = tensor(1.3), 0.2
    seen = (1 - e) * pairwise_loss("robust", h, tensor(0.0), 0.5, e) + e * pairwise_loss(
        "robust", -h, tensor(0.0), 0.5, e
    )
    assert seen.item() == pytest.approx(pairwise_loss("dpo", h, tensor(0.0), 0.5).item())


def test_conservative_labels_have_their_minimum_at_the_believed_odds():
    h = tensor(math.log(0.9 / 0.1) / 0.1).requires_grad_()
    pairwise_loss("cdpo", h, tensor(0.0), 0.1, 0.1).sum().backward()
    assert h.grad.item() == pytest.approx(0.0, abs=1e-9)


def test_extreme_gaps_stay_finite():
    gap = torch.tensor([-1e4, 1e4]).requires_grad_()
    for kind in ("dpo", "cdpo", "robust"):
        loss = pairwise_loss(kind, gap, torch.zeros(2), 0.1, 0.1)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gap.grad).all()


# ---- Bradley-Terry -----------------------------------------------------------------------------------------------


def test_bradley_terry():
    chosen, rejected = tensor(1.0), tensor(0.2)
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(0.371101, abs=1e-6)
    assert bradley_terry_loss(chosen, rejected, tensor(0.5)).item() == pytest.approx(0.554355, abs=1e-6)
    plain = bradley_terry_loss(chosen, rejected)
    assert (bradley_terry_loss(chosen, rejected, centering=0.01) - plain).item() == pytest.approx(0.0144, abs=1e-9)


@FEW
@given(numbers(), numbers(), numbers())
def test_a_constant_changes_the_centering_term_alone(chosen, rejected, constant):
    a, b = tensor(chosen), tensor(rejected)
    moved = bradley_terry_loss(a + constant, b + constant)
    assert torch.allclose(moved, bradley_terry_loss(a, b), atol=1e-12)
    difference = bradley_terry_loss(a + constant, b + constant, centering=0.01) - moved
    assert difference.item() == pytest.approx(0.01 * (chosen + rejected + 2 * constant) ** 2, abs=1e-9)
