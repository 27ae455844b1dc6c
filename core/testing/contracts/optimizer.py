"""What every optimizer must keep."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from core.config.typed import typed_config
from core.platform.registry import Registry
from core.testing.contracts.base import TrainingContract


class OptimizerContract(TrainingContract):
    """An optimizer, by itself on a few numbers and in a short run."""

    optimizer: ClassVar[str] = ""

    def entry(self) -> Any:
        found = Registry.load().optimizers.get(self.optimizer)
        assert found is not None, f"no plugin brings the optimizer '{self.optimizer}'"
        return found

    def chosen(self) -> list[str]:
        return ["stage=sft", f"optimizer={self.optimizer}"]

    def prefix(self) -> str:
        return "optimizer"

    def stepped(self, piece: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Weights after three steps on fixed gradients, at most `piece` of them at once; one got no gradient."""
        import torch

        from core.training import optim

        monkeypatch.setattr(optim, "_PIECE", piece)
        config, registry, _ = typed_config([*self.chosen(), *self.words])
        build = registry.resolve(self.entry().spec)
        source = torch.Generator().manual_seed(0)
        shapes = {"matrix": (4, 3), "still": (2, 2), "vector": (5,)}
        named = [(name, torch.nn.Parameter(torch.randn(shape, generator=source))) for name, shape in shapes.items()]
        groups = optim.decay_groups(named, self.lr, 0.1)
        masters = optim.MasterOptimizer(groups, lambda groups: build(config.optimizer, groups))
        start = named[1][1].detach().clone()
        for _ in range(3):
            for name, parameter in named:
                if name != "still":
                    parameter.grad = torch.randn(parameter.shape, generator=source)
            masters.step()
        assert torch.equal(named[1][1], start), "a parameter without a gradient moved"
        return [number for _, parameter in named for number in parameter.flatten().tolist()]

    def test_a_step_in_pieces_is_the_step_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Core hands over the gradients piece by piece; what got none stays as it is."""
        whole = self.stepped(1 << 24, monkeypatch)
        assert self.stepped(1, monkeypatch) == whole
