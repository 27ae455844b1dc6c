"""Two steps by hand, and the contract of every optimizer."""

import torch
from acme_lion import LionConfig, build

from core.testing.contracts import OptimizerContract


class TestLion(OptimizerContract):
    optimizer = "lion"
    lr = 1e-3


def test_two_steps():
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    lion = build(LionConfig(beta1=0.9, beta2=0.5), [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}])
    weight.grad = torch.tensor([2.0, -1.0])
    lion.step()
    assert torch.allclose(weight, torch.tensor([0.85, 1.05]))
    # Momentum is half the gradient before: 0.9 * 1 - 0.1 * 5 > 0 and 0.9 * -0.5 + 0.1 * 5 > 0.
    weight.grad = torch.tensor([-5.0, 5.0])
    lion.step()
    assert torch.allclose(weight, torch.tensor([0.85 * 0.95 - 0.1, 1.05 * 0.95 - 0.1]))
