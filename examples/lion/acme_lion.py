"""The optimizer Lion: the sign of an average of momentum and gradient (Chen et al. 2023, arXiv:2302.06675)."""

from dataclasses import dataclass

from core.api import OptimizerConfig, OptimizerSpec, hookimpl, number

PREFTUNE_API = 2


@dataclass
class LionConfig(OptimizerConfig):
    """Settings of `optimizer=lion`; take a third to a tenth of AdamW's `stage.lr`."""

    beta1: float = number(0.9, at_least=0, below=1)
    """Weight of the momentum in the direction of a step."""
    beta2: float = number(0.99, at_least=0, below=1)
    """Share of the momentum that stays after a step."""


def build(config, groups):
    # torch is imported when the optimizer is made, so this module may be the entry module too.
    import torch

    class Lion(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for weight in [one for one in group["params"] if one.grad is not None]:
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    direction = torch.lerp(weight.grad, momentum, config.beta1).sign()
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                    momentum.lerp_(weight.grad, 1 - config.beta2)

    return Lion(groups, {})


@hookimpl
def register_optimizers():
    summary = "sign of momentum and gradient, half of Adam's state"
    return [OptimizerSpec("lion", LionConfig, "acme_lion:build", summary, state_bytes=4.0)]
