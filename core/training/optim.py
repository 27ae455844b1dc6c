"""Any optimizer on fp32 master weights, whatever number format the model computes in.

A bf16 weight near 0.05 cannot take a step smaller than about 0.0002: at fine-tuning learning rates most updates would
be rounded away. So the optimizer keeps an fp32 copy, adds its steps there, and rounds the copy into the model.

Rounded to the nearest, a model that begins on the bf16 grid would still not notice its first steps, which are smaller
than half a grid step. So each weight has a threshold of its own, evenly spread over the grid step, above which it is
rounded up: of many weights the share that moves is the share of the step that the masters have gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from core.errors import PluginError
from core.settings.schema import Schedule

_PIECE = 1 << 24
"""Parameters whose fp32 gradients stand at once in a step."""


class MasterOptimizer:
    """An optimizer of torch's kind over groups of named parameters.

    groups: one dict a group with `params` (list of (name, parameter)), `lr` and `weight_decay`; names are unique over
        all groups. A step moves those parameters alone that got a gradient since the last one.
    build: makes the optimizer out of torch's groups of fp32 masters, see core.api.OptimizerSpec.

    Gradients of one micro-batch stay in the parameters, in the model's number format, until the step turns them into
    fp32 piece by piece. Where several micro-batches add up (`accumulating`), each is added into fp32 as it comes.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    ) -> None:
        self.names: list[str] = []
        self.params: list[nn.Parameter] = []
        self.masters: list[nn.Parameter] = []
        self.accumulating = False
        """Set before the first backward pass of an update that has several micro-batches."""
        self._scale = 1.0
        self._hooks: list[Any] = []
        master_groups = []
        for group in groups:
            masters = []
            for name, parameter in group["params"]:
                same = parameter.dtype == torch.float32
                master = parameter if same else nn.Parameter(parameter.detach().float())
                self.names.append(name)
                self.params.append(parameter)
                self.masters.append(master)
                masters.append(master)
                if not same:
                    # Freed one by one during backward: the model's own gradients never stand all at once.
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(self._absorb_hook(master)))
            master_groups.append({"params": masters, "lr": group["lr"], "weight_decay": group["weight_decay"]})
        self.inner = build(master_groups)
        self._peaks = [group["lr"] for group in self.inner.param_groups]

    def _absorb_hook(self, master: nn.Parameter) -> Any:
        def hook(parameter: nn.Parameter) -> None:
            if self.accumulating:
                _add_gradient(master, parameter)

        return hook

    def _gradients(self) -> list[Tensor]:
        pairs = zip(self.params, self.masters, strict=True)
        return [
            grad for parameter, master in pairs for grad in [master.grad if parameter.grad is None else parameter.grad]
            if grad is not None
        ]  # fmt: skip

    def add_gradients(self, add: Callable[[Tensor], None]) -> None:
        """Make each fp32 gradient the sum over several processes. To be called after `accumulating` backward passes.

        add: makes a tensor the sum of every process's, in place.
        A parameter that has a gradient in one of the processes gets one in all.
        """
        has = torch.tensor([float(master.grad is not None) for master in self.masters], device=self.masters[0].device)
        add(has)
        for master, known in zip(self.masters, has.tolist(), strict=True):
            if known:
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
                add(master.grad)

    def sums(self) -> list[float]:
        """The sum of each master in float64: equal where the weights are."""
        return [master.detach().double().sum().item() for master in self.masters]

    def clip(self, max_norm: float) -> Tensor:
        """Global gradient norm before clipping, []; the step will clip to `max_norm` unless that is 0."""
        gradients = self._gradients()
        if not gradients:
            return torch.zeros(())
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        clips = max_norm > 0 and bool(torch.isfinite(norm)) and bool(norm > max_norm)
        self._scale = (max_norm / (norm + 1e-6)).item() if clips else 1.0
        return norm

    def set_lr_factor(self, factor: float) -> None:
        """Learning rate of each group = its peak times `factor`."""
        for group, peak in zip(self.inner.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    def step(self) -> None:
        """One step on the masters, rounded into the model, a piece of the parameters at a time."""
        waiting: list[int] = []
        size = 0
        for index, (parameter, master) in enumerate(zip(self.params, self.masters, strict=True)):
            if parameter.grad is None and master.grad is None:
                continue
            waiting.append(index)
            size += parameter.numel()
            if size >= _PIECE:
                self._step_piece(waiting)
                waiting, size = [], 0
        self._step_piece(waiting)
        self._scale = 1.0
        self.accumulating = False

    def _step_piece(self, indices: list[int]) -> None:
        """Step these parameters; the others' master gradients are put aside meanwhile."""
        if not indices:
            return
        chosen = set(indices)
        aside = [
            (master, master.grad)
            for i, master in enumerate(self.masters)
            if i not in chosen and master.grad is not None
        ]
        for master, _ in aside:
            master.grad = None
        for i in indices:
            parameter, master = self.params[i], self.masters[i]
            if parameter is not master:
                _add_gradient(master, parameter)
            if self._scale != 1.0 and master.grad is not None:
                master.grad.mul_(self._scale)
        self.inner.step()
        with torch.no_grad():
            for i in indices:
                self.masters[i].grad = None
                if self.params[i] is not self.masters[i]:
                    round_into(self.params[i], self.masters[i], self.names[i])
        for master, gradient in aside:
            master.grad = gradient

    def gradient_copies(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter that has a gradient with a copy of it, in the parameter's number format; before the step."""
        copies = []
        for parameter, master in zip(self.params, self.masters, strict=True):
            gradient = master.grad if parameter.grad is None else parameter.grad
            if gradient is not None:
                copies.append((parameter, gradient.detach().to(parameter.dtype, copy=True)))
        return copies

    def adopt(self) -> None:
        """Take what others wrote into the parameters since the last step over into the masters."""
        with torch.no_grad():
            for name, parameter, master in zip(self.names, self.params, self.masters, strict=True):
                if parameter is not master:
                    rounded = torch.empty_like(parameter)
                    round_into(rounded, master, name)
                    master.copy_(torch.where(parameter == rounded, master, parameter.float()))

    def release(self) -> None:
        """Let go of the parameters. Their hooks live outside Python's memory, where no collector would find them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.inner.state.clear()

    def drop_gradients(self) -> None:
        """Forget the gradients gathered so far."""
        self._scale = 1.0
        self.accumulating = False
        for parameter, master in zip(self.params, self.masters, strict=True):
            parameter.grad = master.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Masters and the optimizer's state by name, for a checkpoint.

        Raises PluginError where the optimizer keeps what a checkpoint cannot hold.
        """
        tensors: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[f"master/{name}"] = master.detach()
            for key, value in self.inner.state.get(master, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"state/{key}/{name}"] = value.detach()
                elif isinstance(value, int | float):
                    tensors[f"number/{key}/{name}"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
                elif value is not None:
                    raise PluginError(
                        f"the optimizer keeps '{key}' of a parameter as {type(value).__name__}",
                        type(self.inner).__name__, "its state must be tensors and numbers by parameter",
                    )  # fmt: skip
        return _unshared(tensors)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Counterpart of `state_tensors`. Raises KeyError when a parameter is missing."""
        with torch.no_grad():
            for name, parameter, master in zip(self.names, self.params, self.masters, strict=True):
                master.copy_(tensors[f"master/{name}"])
                if parameter is not master:
                    round_into(parameter, master, name)
            saved: dict[str, dict[str, Any]] = {}
            for label, tensor in tensors.items():
                kind, _, rest = label.partition("/")
                key, _, name = rest.partition("/")
                if kind == "number":
                    saved.setdefault(name, {})[key] = tensor.item()
                elif kind == "state":
                    saved.setdefault(name, {})[key] = tensor.clone()
            for name, master in zip(self.names, self.masters, strict=True):
                if name in saved:
                    self.inner.state[master] = {
                        key: value.to(master.device) if isinstance(value, Tensor) else value
                        for key, value in saved[name].items()
                    }


_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, with a copy of each tensor whose memory another one has already: a checkpoint holds none twice."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def round_into(parameter: Tensor, master: Tensor, name: str) -> None:
    """Write the fp32 `master` into `parameter` of the same shape.

    In bf16 a value between two neighbours goes to the one away from zero where the share of the way that it has gone
    is above the threshold of its place. Thresholds are a fixed permutation of 0 … 65535, repeated along the flattened
    tensor from a place that `name` decides: no state, no noise for a value on the grid, and the mean error of many
    values is zero. Other formats take the nearest value.
    """
    if parameter.dtype != torch.bfloat16 or not parameter.is_contiguous():
        parameter.copy_(master)
        return
    bits, target = master.detach().reshape(-1).view(torch.int32), parameter.detach().view(-1)
    thresholds = _thresholds(str(bits.device))[crc32(name.encode()) % _PERIOD :]
    piece = _PERIOD if bits.device.type == "cpu" else _PIECE  # what a cache holds; few kernels
    for start in range(0, bits.numel(), piece):
        some = bits[start : start + piece]
        raised = some + thresholds[: some.numel()]
        target[start : start + piece].copy_(raised.bitwise_and_(_UPPER_HALF).view(torch.float32))


_PERIOD = 1 << 16
"""Values between two neighbours in bf16 that fp32 knows."""
_UPPER_HALF = -_PERIOD
"""Mask of the bits of an fp32 number that bf16 has."""


@cache
def _thresholds(device: str) -> Tensor:
    """What is added to the lower half of the bits: a fixed permutation of 0 … 65535, as often as a piece needs that
    begins anywhere in the first."""
    once = torch.randperm(_PERIOD, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    return once.repeat(2 if device == "cpu" else _PIECE // _PERIOD + 1).to(device)


def _add_gradient(master: nn.Parameter, parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    if gradient is None:
        return
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad += gradient
    parameter.grad = None


def decay_groups(named: Sequence[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, vectors and scalars without."""
    matrices = [(name, parameter) for name, parameter in named if parameter.ndim > 1]
    vectors = [(name, parameter) for name, parameter in named if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def lr_factor(schedule: Schedule, step: int, total: int, warmup_frac: float) -> float:
    """Share of the peak learning rate at step `step` (counted from 0) of `total`.

    Rises linearly over the warm-up so that no step has rate 0; linear and cosine fall to 0 just after the last step.
    """
    warmup = math.ceil(total * warmup_frac)
    if step < warmup:
        return (step + 1) / warmup
    if schedule is Schedule.constant:
        return 1.0
    progress = (step - warmup) / max(total - warmup, 1)
    if schedule is Schedule.linear:
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
