"""Plain SGD with momentum and noise from torch's generator, in a loop that core knows nothing of."""

from __future__ import annotations

from typing import Any

import torch

from core.torch_api import Checkpoints, Fitted, Models, Recorder, Stage, StageData
from plugins.sft.stage import weighted_nll, weighted_rows


class OwnLoop(Stage):
    """Takes up where it was interrupted."""

    seen = 0

    def build_data(self) -> StageData:
        """All demonstrations."""
        records = self.run.plan.dataset
        return StageData(self.run.examples.demonstrations(records.train), [])

    def fit(self, models: Models, data: Any, recorder: Recorder) -> Fitted:
        """The loop."""
        checkpoints = Checkpoints(self.run, recorder)
        momentum: dict[str, torch.Tensor] = {}
        weights = dict(models.trained()["policy"].trainable())
        saved = checkpoints.resume()
        step = saved.step if saved else 0
        if saved:
            for name, weight in weights.items():
                weight.data.copy_(saved.tensors[f"weight/{name}"])
                momentum[name] = saved.tensors[f"momentum/{name}"]
            assert saved.state == {"seen": self.seen} == {"seen": step * self.cfg.batch_size}
        while step < recorder.total:
            with checkpoints.whole():
                loss = self._train_one(models, data, step, weights, momentum)
                step += 1
                recorder.step(step, 0, 0.0, {"loss": loss})
                checkpoints.keep(
                    step,
                    lambda: (
                        {f"weight/{name}": one.data for name, one in weights.items()}
                        | {f"momentum/{name}": one for name, one in momentum.items()}
                    ),
                    state={"seen": self.seen},
                )
        return Fitted(step, resumed_at=checkpoints.resumed_at)

    def _train_one(
        self, models: Models, data: Any, step: int, weights: dict[str, Any], momentum: dict[str, torch.Tensor]
    ) -> float:
        examples = self.next_examples(data.train, step)
        self.seen += len(examples)
        losses = [weighted_nll(models, row) for row in weighted_rows(examples, self.cfg.micro_batch_tokens)]
        loss = torch.stack(losses).sum()
        loss.backward()
        for name, weight in weights.items():
            gradient = weight.grad + 0.01 * torch.randn_like(weight)
            momentum[name] = 0.9 * momentum.get(name, torch.zeros_like(gradient)) + gradient
            weight.data -= self.cfg.lr * momentum[name]
            weight.grad = None
        return loss.item()

    def save_state(self) -> dict[str, Any]:
        """Examples seen."""
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        """Counterpart of save_state."""
        self.seen = state["seen"]


class Forgetful(OwnLoop):
    """Begins again whatever was done."""

    def fit(self, models: Models, data: Any, recorder: Recorder) -> Fitted:
        """The loop."""
        weights = dict(models.trained()["policy"].trainable())
        momentum: dict[str, torch.Tensor] = {}
        for step in range(recorder.total):
            recorder.step(step + 1, 0, 0.0, {"loss": self._train_one(models, data, step, weights, momentum)})
        return Fitted(recorder.total)
