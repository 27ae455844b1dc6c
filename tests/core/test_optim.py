"""Optimizers on fp32 masters: small steps on bf16 weights, accumulation, state, clipping, schedules."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import core.training.optim
from core.errors import PluginError
from core.settings.schema import Schedule
from core.training.optim import MasterOptimizer, decay_groups, lr_factor, round_into
from plugins.optimizers import AdafactorConfig, AdamW8bitConfig, AdamWConfig, built

ADAMW = partial(built.adamw, AdamWConfig())
BUILT_IN = {
    "adamw": ADAMW,
    "adamw8bit": partial(built.adamw8bit, AdamW8bitConfig(min_values=0)),
    "adafactor": partial(built.adafactor, AdafactorConfig()),
}


def made(dtype: torch.dtype, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def optimizer(module: nn.Module, lr: float = 1e-3, decay: float = 0.0, build=ADAMW) -> MasterOptimizer:
    return MasterOptimizer(decay_groups(list(module.named_parameters()), lr, decay), build)


def inputs(seed: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=source), torch.randn(count, 3, generator=source)


def loss_of(module: nn.Module, seed: int) -> torch.Tensor:
    x, y = inputs(seed)
    dtype = next(module.parameters()).dtype
    return ((module(x.to(dtype)).float() - y) ** 2).mean()


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in module.parameters()])


def flat_masters(optim: MasterOptimizer) -> torch.Tensor:
    return torch.cat([master.detach().flatten() for master in optim.masters])


def rounded(master: torch.Tensor, name: str = "w") -> torch.Tensor:
    out = torch.empty_like(master, dtype=torch.bfloat16)
    round_into(out, master.detach(), name)
    return out


# ---- small steps -------------------------------------------------------------------------------------------------


def push(weight: nn.Parameter, step) -> None:
    """200 steps along a constant gradient of one."""
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        step()


def test_plain_bf16_adamw_loses_small_steps_and_masters_keep_them():
    start = torch.full((4, 4), 0.05)
    lr = 1e-6  # half the spacing of bf16 numbers near 0.05 is 1.2e-4
    plain = nn.Parameter(start.to(torch.bfloat16))
    adam = torch.optim.AdamW([plain], lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    push(plain, adam.step)
    assert torch.equal(plain.detach(), start.to(torch.bfloat16))

    exact = nn.Parameter(start.to(torch.bfloat16).float())
    adam = torch.optim.AdamW([exact], lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    push(exact, adam.step)

    held = nn.Parameter(start.to(torch.bfloat16))
    masters = MasterOptimizer(decay_groups([("w", held)], lr, 0.0), ADAMW)
    push(held, masters.step)
    assert torch.allclose(masters.masters[0].detach(), exact.detach(), atol=1e-9)
    assert torch.allclose(exact.detach(), start.to(torch.bfloat16).float() - 200 * lr, atol=1e-6)
    assert torch.equal(held.detach(), rounded(exact))
    assert not torch.equal(held.detach(), start.to(torch.bfloat16))


def test_the_masters_of_bf16_weights_follow_fp32_adamw_on_the_same_gradients():
    low, high = made(torch.bfloat16), made(torch.bfloat16).float()
    ours = optimizer(low, lr=3e-4, decay=0.1)
    names = dict(high.named_parameters())
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in names.values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in names.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=3e-4, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    for step in range(30):
        loss_of(low, step).backward()
        for p, q in zip(low.parameters(), high.parameters(), strict=True):
            q.grad = p.grad.float()
        ours.step()
        adam.step()
    for name, master in zip(ours.names, ours.masters, strict=True):
        assert torch.allclose(master.detach(), names[name].detach(), atol=1e-7), name
    for name, p, q in zip(ours.names, ours.params, ours.masters, strict=True):
        assert torch.equal(p.detach(), rounded(q, name))


@pytest.mark.parametrize("lr", [1e-6, 1e-5, 1e-4])
def test_the_first_step_reaches_the_model(lr: float):
    """On average of many weights: each is on the grid and moves by far less than half of its step."""
    torch.manual_seed(0)
    weight = nn.Parameter((0.05 * torch.randn(400, 500)).to(torch.bfloat16))
    start = weight.detach().float()
    masters = MasterOptimizer(decay_groups([("w", weight)], lr, 0.0), ADAMW)
    weight.grad = torch.where(start > 0, 1.0, -1.0).to(torch.bfloat16)
    masters.step()
    moved = start.abs() - weight.detach().float().abs()
    assert moved.mean().item() == pytest.approx(lr, rel=0.1)
    assert (moved == 0).float().mean() > 0.3  # the nearest values would nearly all be where they were


def test_rounding_into_bf16():
    """Values on the grid stay, others become one of their two neighbours, and errors cancel."""
    torch.manual_seed(0)
    grid = torch.randn(3, 50_001).to(torch.bfloat16)
    assert torch.equal(rounded(grid.float()), grid)
    between = torch.randn(3, 50_001)
    low = (between.view(torch.int32) & -65536).view(torch.float32)  # towards zero
    high = ((between.view(torch.int32) & -65536) + 65536).view(torch.float32)
    ours = rounded(between).float()
    assert bool(((ours == low) | (ours == high)).all())
    share = (between - low) / (high - low)
    for begin in (0.0, 0.25, 0.5, 0.75):
        these = (share >= begin) & (share < begin + 0.25)
        assert (ours == high)[these].float().mean() == pytest.approx(begin + 0.125, abs=0.01)
    assert (ours - between).mean().abs() < 1e-5
    assert torch.equal(rounded(-between), -rounded(between))
    assert torch.equal(rounded(between.view(-1)[65536:]), rounded(between).view(-1)[65536:])  # a place, not its piece
    assert not torch.equal(rounded(between, "v"), rounded(between))  # places in two tensors have nothing in common
    special = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    assert torch.equal(rounded(special).float(), special) and bool(rounded(torch.tensor([torch.nan])).isnan())


def test_what_is_no_row_of_bf16_is_rounded_to_the_nearest():
    values = torch.randn(4, 6)
    half, turned = torch.empty(4, 6, dtype=torch.float16), torch.empty(6, 4, dtype=torch.bfloat16).T
    round_into(half, values, "w")
    round_into(turned, values, "w")
    assert torch.equal(half, values.half()) and torch.equal(turned, values.bfloat16())


def test_a_bf16_run_ends_near_the_fp32_run():
    low, high = made(torch.bfloat16), made(torch.bfloat16).float()
    ours, theirs = optimizer(low), optimizer(high)
    start = flat(high)
    for step in range(60):
        for module, optim in ((low, ours), (high, theirs)):
            loss_of(module, step % 5).backward()
            optim.step()
    moved = (flat(high) - start).norm()
    assert moved > 0.1
    # The gradients themselves are rounded in bf16, so the masters drift by a share of the way.
    order = {name: i for i, name in enumerate(theirs.names)}
    assert [order[name] for name in ours.names] == list(range(len(order)))
    assert (flat_masters(ours) - flat_masters(theirs)).norm() < 0.1 * moved


def test_fp32_weights_have_no_second_copy():
    module = made(torch.float32)
    ours = optimizer(module)
    assert {id(master) for master in ours.masters} == {id(p) for p in module.parameters()}


# ---- gradients ---------------------------------------------------------------------------------------------------


def test_gradients_of_several_micro_batches_add_up_in_fp32():
    weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    ours = MasterOptimizer(decay_groups([("w", weight)], 1e-3, 0.0), ADAMW)
    ours.accumulating = True
    for _ in range(1000):
        weight.sum().backward()
        assert weight.grad is None
    # A bf16 sum of ones stops at 256.
    assert torch.equal(ours.masters[0].grad, torch.full((4, 4), 1000.0))
    assert ours.masters[0].grad.dtype == torch.float32
    assert ours.clip(0.0).item() == 4000.0


def test_the_gradient_of_one_micro_batch_waits_in_the_parameter():
    weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    ours = MasterOptimizer(decay_groups([("w", weight)], 1e-3, 0.0), ADAMW)
    weight.sum().backward()
    assert ours.masters[0].grad is None
    assert ours.clip(0.0).item() == 4.0
    ours.step()
    assert ours.masters[0][0, 0].item() == pytest.approx(-1e-3, rel=1e-4)
    assert weight.grad is None
    assert ours.masters[0].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_micro_batch_trains_alike_by_either_road_and_in_pieces(dtype, monkeypatch):
    results = []
    for accumulating, piece in ((False, 1 << 24), (True, 1 << 24), (False, 1), (True, 20)):
        monkeypatch.setattr(core.training.optim, "_PIECE", piece)
        module = made(dtype)
        ours = optimizer(module, decay=0.1)
        for step in range(5):
            ours.accumulating = accumulating
            loss_of(module, step).backward()
            ours.clip(0.5)
            ours.step()
            assert not ours.accumulating
        results.append(flat_masters(ours))
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_micro_batches_add_up_to_the_whole_batch():
    results = []
    for parts in (1, 4):
        module = made(torch.float32)
        ours = optimizer(module, lr=1e-2)
        for step in range(3):
            ours.accumulating = parts > 1
            x, y = inputs(step)
            for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (((module(xs) - ys) ** 2).mean() / parts).backward()
            norm = ours.clip(0.1)
            ours.step()
        results.append((norm, flat_masters(ours)))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_scales_all_gradients_of_the_next_step_by_one_number(dtype):
    def moments(max_norm: float, again: bool = False) -> tuple[float, torch.Tensor]:
        module = made(dtype)
        ours = optimizer(module)
        for number in range(2 if again else 1):
            module.zero_grad()
            loss_of(module, 0).backward()
            norm = ours.clip(max_norm if number == 0 else 0.0).item()
            ours.step()
        state = ours.state_tensors()
        return norm, torch.cat([state[f"state/exp_avg/{name}"].flatten() for name in ours.names])

    norm, plain = moments(0.0)
    # The first moment after one step is 0.1 of the gradient.
    assert (plain / 0.1).norm().item() == pytest.approx(norm, rel=1e-4)
    same_norm, loose = moments(10 * norm)
    assert same_norm == norm
    assert torch.equal(loose, plain)
    same_norm, clipped = moments(norm / 4)
    assert same_norm == norm
    assert torch.allclose(clipped, plain / 4, rtol=1e-3)
    # The scale is spent with its step: 0.9 of the clipped moment and 0.1 of a whole gradient.
    _, twice = moments(norm / 4, again=True)
    assert twice.norm() > 3 * clipped.norm()


def test_clip_without_gradients_is_zero_and_infinite_norms_are_told():
    module = made(torch.float32)
    ours = optimizer(module)
    assert ours.clip(1.0).item() == 0.0
    loss_of(module, 0).backward()
    module[0].weight.grad[0] = float("inf")
    assert ours.clip(1.0).item() == float("inf")


def test_dropped_gradients_leave_no_trace():
    module = made(torch.bfloat16)
    ours = optimizer(module)
    ours.accumulating = True
    loss_of(module, 0).backward()
    ours.clip(1e-6)
    ours.drop_gradients()
    assert all(master.grad is None for master in ours.masters)
    assert all(parameter.grad is None for parameter in module.parameters())
    before = flat_masters(ours)
    ours.step()
    assert torch.equal(flat_masters(ours), before)


def test_what_got_no_gradient_does_not_move():
    one, two = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    ours = MasterOptimizer(decay_groups([("one", one), ("two", two)], 1e-2, 0.5), ADAMW)
    (one.sum() + two.float().sum()).backward()
    ours.step()
    middle = two.detach().clone()
    assert middle[0, 0] < 1
    one.sum().backward()
    ours.step()
    assert torch.equal(two.detach(), middle)
    assert one[0, 0].item() < 0.985


# ---- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reloaded_optimizer_goes_on_bit_by_bit(dtype, name, tmp_path):
    def train(module: nn.Module, ours: MasterOptimizer, steps: range) -> None:
        for step in steps:
            loss_of(module, step).backward()
            ours.clip(1.0)
            ours.set_lr_factor(lr_factor(Schedule.cosine, step, 10, 0.2))
            ours.step()

    straight = made(dtype)
    optim = optimizer(straight, lr=1e-2, decay=0.1, build=BUILT_IN[name])
    train(straight, optim, range(4))
    save_file(optim.state_tensors(), tmp_path / "state.safetensors")
    saved = load_file(tmp_path / "state.safetensors")
    train(straight, optim, range(4, 10))

    resumed = made(dtype, seed=5)
    again = optimizer(resumed, lr=1e-2, decay=0.1, build=BUILT_IN[name])
    again.load_state_tensors(saved)
    train(resumed, again, range(4, 10))
    assert torch.equal(flat(straight), flat(resumed))
    for key, value in optim.state_tensors().items():
        assert torch.equal(value, again.state_tensors()[key]), key


def test_state_that_no_checkpoint_can_hold_is_told():
    ours = optimizer(made(torch.float32))
    ours.inner.state[ours.masters[0]]["history"] = [1, 2]
    with pytest.raises(PluginError, match="keeps 'history' of a parameter as list"):
        ours.state_tensors()


def test_loaded_state_is_a_copy():
    module = made(torch.float32)
    ours = optimizer(module)
    loss_of(module, 0).backward()
    ours.step()
    saved = {name: value.clone() for name, value in ours.state_tensors().items()}
    kept = copy.deepcopy(saved)
    ours.load_state_tensors(saved)
    loss_of(module, 1).backward()
    ours.step()
    for name, value in kept.items():
        assert torch.equal(saved[name], value), name


def test_state_before_the_first_step_holds_the_masters_and_a_missing_one_is_told():
    ours = optimizer(made(torch.bfloat16))
    tensors = ours.state_tensors()
    assert sorted(tensors) == sorted(f"master/{name}" for name in ours.names)
    tensors.pop("master/0.bias")
    with pytest.raises(KeyError, match=r"master/0\.bias"):
        ours.load_state_tensors(tensors)


# ---- groups and rates --------------------------------------------------------------------------------------------


def test_matrices_decay_and_vectors_do_not():
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    groups = decay_groups(list(module.named_parameters()), 1e-3, 0.1)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight", "1.weight"],
        ["1.bias", "2.weight", "2.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert len(decay_groups([("b", nn.Parameter(torch.zeros(3)))], 1e-3, 0.1)) == 1
    assert decay_groups([], 1e-3, 0.1) == []


def test_decay_alone_shrinks_matrices_by_lr_times_decay():
    module = made(torch.bfloat16)
    before = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    ours = optimizer(module, lr=1e-2, decay=0.5)
    for master in ours.masters:
        master.grad = torch.zeros_like(master)
    ours.step()
    for name, master in zip(ours.names, ours.masters, strict=True):
        factor = 1 - 1e-2 * 0.5 if name.endswith("weight") else 1.0
        assert torch.allclose(master.detach(), before[name] * factor, atol=1e-7)


def test_each_group_has_its_own_peak():
    one, two = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    groups = decay_groups([("one", one)], 1e-2, 0.0) + decay_groups([("two", two)], 1e-3, 0.0)
    ours = MasterOptimizer(groups, ADAMW)
    ours.set_lr_factor(0.5)
    one.grad, two.grad = torch.ones(2, 2), torch.ones(2, 2)
    ours.step()
    # The first step of Adam is the rate itself.
    assert torch.allclose(one.detach(), torch.full((2, 2), -5e-3), atol=1e-6)
    assert torch.allclose(two.detach(), torch.full((2, 2), -5e-4), atol=1e-7)
    ours.set_lr_factor(1.0)
    assert [group["lr"] for group in ours.inner.param_groups] == [1e-2, 1e-3]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule.constant, {0: 0.5, 1: 1.0, 2: 1.0, 9: 1.0}),
        (Schedule.linear, {0: 0.5, 1: 1.0, 2: 1.0, 3: 0.875, 6: 0.5, 9: 0.125}),
        (Schedule.cosine, {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.853553, 6: 0.5, 9: 0.038060}),
    ],
)
def test_rates_over_ten_steps_two_of_them_warm_up(schedule, values):
    for step, value in values.items():
        assert lr_factor(schedule, step, 10, 0.2) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_no_step_has_rate_zero_and_none_is_over_the_peak(schedule):
    for total in (1, 2, 3, 7, 100):
        for warmup in (0.0, 0.05, 0.5, 1.0):
            factors = [lr_factor(schedule, step, total, warmup) for step in range(total)]
            assert all(0.0 < factor <= 1.0 for factor in factors)
            assert max(factors) == 1.0


def test_one_step_takes_the_whole_rate():
    for schedule in Schedule:
        assert lr_factor(schedule, 0, 1, 0.05) == 1.0
        assert lr_factor(schedule, 0, 1, 0.0) == 1.0
